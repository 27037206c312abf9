/**
 * The report's only style sheet. The runs' colours are Okabe and Ito's, which can be distinguished with any colour vision; they
 * are lighter on a dark background.
 */
export const style = `
:root {
  color-scheme: light dark;
  --page: #fff; --raised: #f6f7f8; --ink: #1b1e23; --muted: #5d646e; --hairline: #dfe2e6;
  --right: #006b4f; --wrong: #a63a00; --partly: #7a5a00; --warn: #fff4dd; --warn-ink: #5c3f00; --best: #e8f1f8;
  --run-base: #6c727b; --run-0: #0072b2; --run-1: #d55e00; --run-2: #009e73; --run-3: #b8608f; --run-4: #c08a00; --run-5: #3b9bd0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --raised: #1d2025; --ink: #e4e6ea; --muted: #9ba2ac; --hairline: #2f343b;
    --right: #4fc9a4; --wrong: #ff9a66; --partly: #e3c267; --warn: #3a2e12; --warn-ink: #f3d999; --best: #1c2f3d;
    --run-base: #9aa1ab; --run-0: #58aee8; --run-1: #f58a46; --run-2: #35c497; --run-3: #e39bc4; --run-4: #e8b93c; --run-5: #9fd3f2;
  }
}
.run-base { --c: var(--run-base) } .run-0 { --c: var(--run-0) } .run-1 { --c: var(--run-1) } .run-2 { --c: var(--run-2) }
.run-3 { --c: var(--run-3) } .run-4 { --c: var(--run-4) } .run-5 { --c: var(--run-5) }

* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body {
  margin: 0 auto; padding: 40px 16px 64px; max-width: 1152px;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
h1 { margin: 0 0 8px; font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em }
h2 { margin: 56px 0 4px; font-size: 20px; line-height: 1.3; font-weight: 650; letter-spacing: -.01em }
h3 { margin: 24px 0 8px; font-size: 15px; font-weight: 600 }
p { margin: 0 0 12px; max-width: 90ch }
.note, figcaption, footer { color: var(--muted); font-size: 14px }
.overline { margin: 0 0 4px; color: var(--muted); font-size: 13px }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
footer { margin-top: 64px; padding-top: 16px; border-top: 1px solid var(--hairline) }
.warning { margin: 16px 0; padding: 12px 16px; border-radius: 6px; background: var(--warn); color: var(--warn-ink); font-size: 14px }
.warning ul { margin: 4px 0 0; padding-left: 20px }
.missing { margin: 12px 0 0; color: var(--muted); font-style: italic }

.legend {
  position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 0 -16px; padding: 8px 16px;
  background: var(--page); border-bottom: 1px solid var(--hairline); font-size: 14px; list-style: none;
}
.name { display: inline-flex; align-items: flex-start; gap: 8px }
.swatch { flex: none; height: 1lh }

.scroll {
  overflow-x: auto; margin: 0 -16px; padding: 0 16px;
  /* A shadow at the right edge while there is more to see: the covering gradient moves with the content. */
  background: linear-gradient(to left, var(--page) 60%, transparent) right / 32px 100% no-repeat local,
    linear-gradient(to left, var(--hairline), transparent) right / 14px 100% no-repeat scroll;
}
table { border-collapse: collapse; font-size: 14px; line-height: 1.35 }
th, td { padding: 7px 12px; text-align: right; vertical-align: top; white-space: nowrap; font-weight: 400 }
thead th { color: var(--muted); vertical-align: bottom; border-bottom: 1px solid var(--hairline) }
th:first-child, td:first-child {
  position: sticky; left: -16px; padding-left: 16px; text-align: left; background: var(--page);
}
.scroll > table { margin-left: -16px }
tbody tr:last-child > * { border-bottom: 1px solid var(--hairline) }
tbody th.group { padding-top: 16px; padding-bottom: 2px; font-weight: 600; border: 0 }
td .interval { display: block; color: var(--muted); font-size: 12px }
td.best .value { font-weight: 700; padding: 1px 5px; margin: -1px -5px; border-radius: 4px; background: var(--best) }
.config td { font: 13px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: normal; min-width: 96px; text-align: left; overflow-wrap: normal }
.config th { text-align: left }
.config { margin-bottom: 20px }

.headline { width: 100%; max-width: 860px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 28px 24px; margin-top: 28px }
figure { margin: 0; min-width: 0 }
.chart-title { display: grid; grid-template-columns: auto 1fr; align-items: baseline; gap: 0 12px; margin: 0 0 4px; font-size: 14px }
.chart-title b { font-weight: 600 }
.chart-title code { font-size: 12px; overflow-wrap: normal }
.last { color: var(--muted); font-size: 13px; text-align: right }
.last span { margin-left: 10px; color: color-mix(in srgb, var(--c) 78%, var(--ink)); white-space: nowrap }
svg.chart { display: block; width: 100%; height: auto; overflow: visible }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: var(--muted); font-variant-numeric: tabular-nums }
.grid-line { stroke: var(--hairline) }
.tick-line { stroke: var(--muted) }
.line { fill: none; stroke: var(--c); stroke-width: 1.75; stroke-linejoin: round; stroke-linecap: round }
.faint { fill: none; stroke: var(--c); stroke-width: 1; opacity: .22 }
.band { fill: var(--c) }
.mark { fill: var(--c); stroke: var(--page); stroke-width: 1 }

.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); gap: 16px; align-items: start; margin-top: 16px }
.cards.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)) }
.card { padding: 14px 16px; border: 1px solid var(--hairline); border-radius: 8px; min-width: 0 }
.card h3 { margin: 0 0 8px }
dl { display: grid; grid-template-columns: auto 1fr; gap: 3px 16px; margin: 0; font-size: 14px }
dt { color: var(--muted) }
dd { margin: 0 }

.phases { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: 6px 16px; align-items: center; margin-top: 12px; font-size: 14px; max-width: 760px }
.bar { display: flex; gap: 1px; height: 20px }
.bar > span { min-width: 1px; background: var(--c) }
.phase-0 { opacity: 1 } .phase-1 { opacity: .68 } .phase-2 { opacity: .42 } .phase-3 { opacity: .2 }
.whole { white-space: nowrap }
.phase-note { grid-column: 2; margin: -2px 0 6px; color: var(--muted); font-size: 13px }

nav a { display: inline-block; margin-right: 14px; color: inherit; font-size: 14px; color: var(--muted) }
details { margin: 12px 0; border-top: 1px solid var(--hairline); padding-top: 12px }
summary { cursor: pointer; font-size: 15px; font-weight: 600 }
summary .name { vertical-align: middle }
summary .note { font-weight: 400 }
details pre { overflow-x: auto }
.sample { border: 1px solid var(--hairline); border-left: 3px solid var(--s); border-radius: 6px; min-width: 0; overflow: hidden }
.sample.right { --s: var(--right) } .sample.wrong { --s: var(--wrong) } .sample.partly { --s: var(--partly) }
.sample header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; padding: 7px 12px; font-size: 13px; color: var(--muted) }
.sample .reason { flex-basis: 100% }
.sample header b { color: var(--s); font-weight: 600 }
.sample pre { margin: 0; padding: 8px 12px; max-height: 18em; overflow: auto; background: var(--raised); white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }
.prompt { display: block; margin: 0 -12px 8px; padding: 0 12px 8px; border-bottom: 1px solid var(--hairline); color: var(--muted) }
.hidden-char { padding: 0 3px; border-radius: 3px; background: var(--warn); color: var(--warn-ink); font-size: 11px }

@media (max-width: 600px) {
  body { padding-top: 24px }
  h1 { font-size: 24px }
  h2 { margin-top: 44px }
  th, td { padding-left: 8px; padding-right: 8px }
  /* The name stands above its values, so that every k fits. */
  .headline tr { display: grid; grid-template-columns: repeat(var(--columns), 1fr); padding-bottom: 4px }
  .headline tr > *, .headline tbody tr:last-child > * { padding: 4px 0 2px; border: 0 }
  .headline thead th { padding-bottom: 6px }
  .headline tr > :first-child { grid-column: 1 / -1; position: static }
  .headline th:empty, .headline th.group + td, .headline .at { display: none }
  .headline thead th:nth-child(2)::before { content: "k = " }
  .headline .interval { font-size: 10px; letter-spacing: -.02em }
  .headline thead tr, .headline tbody tr:last-child { border-bottom: 1px solid var(--hairline) }
  .phases { grid-template-columns: 1fr }
  .phase-note { grid-column: 1 }
  td.best .value { padding: 1px 3px; margin: -1px -3px }
  table:not(.headline) .name { max-width: 38vw; white-space: normal }
  .scroll > table.headline { margin-left: 0 }
}
@media print { .legend { position: static } details { break-inside: avoid } }
`
