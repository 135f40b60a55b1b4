// Draws panels of the dashboard with Grafana's own components. Runs in the browser.

import React from 'react';
import { createRoot } from 'react-dom/client';
import {
    createTheme, dateTime, FieldColorModeId, FieldType, getDisplayProcessor, getFieldDisplayValues, ThemeContext, toDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, TimeSeries } from '@grafana/ui';

const theme = createTheme({ colors: { mode: 'light' } });
// Grafana's grid: 24 columns, and rows of 30 px with gaps of 8 px.
const [CELL, GAP] = [30, 8];

/** The frames of a panel: one for each series, with the panel's own settings, and samples until `to`. */
function frames(panel, to) {
    const { defaults, overrides } = panel.fieldConfig;
    let seriesIndex = -1;
    return panel.targets.flatMap(({ result, legendFormat }) => result.map(({ metric, values }) => {
        const name = (legendFormat ?? '').replace(/{{\s*(\w+)\s*}}/g, (_, label) => metric[label] ?? '') || panel.title;
        const own = overrides.filter(({ matcher }) => matcher.id === 'byName' && matcher.options === name)
            .flatMap(({ properties }) => properties.map(({ id, value }) => [id, value]));
        const config = {
            color: { mode: FieldColorModeId.PaletteClassic }, ...defaults, ...Object.fromEntries(own), displayNameFromDS: name,
        };
        config.custom = { lineWidth: 1, ...config.custom };
        // Grafana's JSON has null where it means minus infinity.
        const steps = config.thresholds?.steps.map((step) => ({ ...step, value: step.value ?? -Infinity }));
        if (steps) config.thresholds = { ...config.thresholds, steps };
        const samples = values.map(([time, value]) => [time * 1000, Number(value)]).filter(([time]) => time <= to);
        const frame = toDataFrame({
            fields: [
                { name: 'Time', type: FieldType.time, values: samples.map(([time]) => time) },
                { name: 'Value', type: FieldType.number, values: samples.map(([, value]) => value), config, labels: metric },
            ],
        });
        const field = frame.fields[1];
        seriesIndex += 1;
        field.state = { seriesIndex };
        field.display = getDisplayProcessor({ field, theme });
        return frame;
    }));
}

function Chart({ panel, width, height, range }) {
    const data = frames(panel, range.to.valueOf());
    for (const { fields } of data) {
        // As Grafana's time series panel does: no value is a gap.
        fields[1].values = fields[1].values.map((value) => (Number.isFinite(value) ? value : null));
    }
    return <TimeSeries frames={data} width={width} height={height} timeRange={range} timeZone="utc"
        legend={{ calcs: [], ...panel.options.legend }} options={panel.options} />;
}

function Stat({ panel, width, height, range }) {
    const { reduceOptions, colorMode, graphMode, textMode } = panel.options;
    const { defaults } = panel.fieldConfig;
    const [shown] = getFieldDisplayValues({
        fieldConfig: { defaults, overrides: [] }, reduceOptions, replaceVariables: (text) => text, theme, data: frames(panel, range.to.valueOf()),
        sparkline: true, timeZone: 'utc',
    });
    return <BigValue value={{ ...shown.display, title: undefined }} sparkline={shown.sparkline} count={1} theme={theme}
        width={width} height={height} colorMode={colorMode} graphMode={graphMode} textMode={textMode} />;
}

function Panel({ panel, left, top, width, range }) {
    const { w, h } = panel.gridPos;
    const column = (width + GAP) / 24;
    const size = { width: w * column - GAP, height: h * (CELL + GAP) - GAP };
    const Shown = { stat: Stat, timeseries: Chart }[panel.type];
    return <div style={{ position: 'absolute', left: left * column, top: top * (CELL + GAP) }}>
        <PanelChrome title={panel.title} description={panel.description} {...size}>
            {(width, height) => <Shown panel={panel} width={width} height={height} range={range} />}
        </PanelChrome>
    </div>;
}

/** Places panels in lines, as Grafana does when panels between them are removed. */
function Part({ title, panels, from, to, width }) {
    const [start, end] = [dateTime(from), dateTime(to)];
    const range = { from: start, to: end, raw: { from: start, to: end } };
    let [x, y, height] = [0, 0, 0];
    const placed = panels.map((panel) => {
        const { w, h } = panel.gridPos;
        if (x + w > 24) [x, y] = [0, height];
        const place = { panel, left: x, top: y };
        [x, height] = [x + w, Math.max(height, y + h)];
        return place;
    });
    return <section>
        <h4>{title}</h4>
        <div style={{ position: 'relative', height: height * (CELL + GAP) - GAP, marginBottom: 2 * GAP }}>
            {placed.map((place) => <Panel key={place.panel.id} width={width} range={range} {...place} />)}
        </div>
    </section>;
}

window.draw = (element, parts) => createRoot(element).render(
    <ThemeContext.Provider value={theme}>
        <GlobalStyles />
        {parts.map((part) => <Part key={part.title} {...part} />)}
    </ThemeContext.Provider>);
