// Shows a trace with the trace viewer of Perses. Runs in the browser.

import React from 'react';
import { createRoot } from 'react-dom/client';
import { ThemeProvider } from '@mui/material';
import { ChartsProvider, generateChartsTheme, getTheme, TimeZoneProvider } from '@perses-dev/components';
// Not the panel around it, which needs all of Perses.
import { TracingGanttChart } from '@perses-dev/tracing-gantt-chart-plugin/lib/TracingGanttChart/TracingGanttChart';

const theme = getTheme('light');

window.draw = (element, trace) => createRoot(element).render(
    <ThemeProvider theme={theme}>
        <ChartsProvider chartsTheme={generateChartsTheme(theme, {})}>
            <TimeZoneProvider timeZone="UTC">
                <TracingGanttChart options={{ visual: { palette: { mode: 'categorical' } } }} trace={trace} />
            </TimeZoneProvider>
        </ChartsProvider>
    </ThemeProvider>);
