// Bundles a program for a page.

import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

/** Returns the script and the style of a program in this folder. */
export async function bundle(name) {
    const { outputFiles } = await build({
        entryPoints: [join(dirname(fileURLToPath(import.meta.url)), name)], bundle: true, write: false, format: 'iife',
        outdir: 'out', minify: true, define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
        // Plugins of Perses load these when they run in it.
        external: ['@perses-dev/explore', '@perses-dev/dashboards'],
        loader: { '.svg': 'dataurl', '.woff2': 'dataurl', '.woff': 'dataurl', '.ttf': 'dataurl' }, logLevel: 'error',
    });
    const text = (end) => outputFiles.filter(({ path }) => path.endsWith(end)).map((output) => output.text).join('\n');
    return { script: text('.js'), style: text('.css') };
}
