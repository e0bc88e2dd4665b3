"""The look of the page: light, dark and printed, from 360 px wide."""

from __future__ import annotations

_LIGHT = """
  --paper: #fdfcfa; --ink: #1d1d1f; --soft: #5a5a60; --rule: #dcd9d2; --sheet: #f5f3ee;
  --right: #00654b; --wrong: #a8380a; --link: #0b5c94; --mark: #fff1cc;
  --s0: #0a66a6; --s1: #b84a0b; --s2: #00775a; --s3: #9b3f86; --s4: #80610a; --s5: #4d5560;
"""
_DARK = """
  --paper: #17181b; --ink: #e9e7e2; --soft: #a9a8a5; --rule: #393b40; --sheet: #1f2125;
  --right: #58cfa4; --wrong: #f59a68; --link: #84bff0; --mark: #453a17;
  --s0: #6ab8f0; --s1: #f0935a; --s2: #4ecaa0; --s3: #e09fd0; --s4: #dcb84c; --s5: #b4bbc6;
"""
_SERIES = "".join(
    f".s{i}{{color:var(--s{i})}}\n" for i in range(6)
)  # everything of a line takes its colour from there

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
html {{ background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; }}
body {{
  margin: 0 auto; padding: 3.5rem 1.25rem 4rem; max-width: 62rem;
  font: 1.0625rem/1.55 Charter, "Bitstream Charter", "Iowan Old Style", Cambria, "Liberation Serif",
    Georgia, serif;
  font-variant-numeric: lining-nums tabular-nums; overflow-wrap: anywhere;
}}
h1, h2, h3 {{ font-weight: 600; line-height: 1.2; text-wrap: balance; }}
h1 {{ font-size: 2.1rem; margin: 0 0 .6rem; letter-spacing: -.01em; }}
h2 {{ font-size: 1.4rem; margin: 3.4rem 0 .8rem; padding-top: .9rem;
  border-top: 1px solid var(--rule); }}
h3 {{ font-size: 1.08rem; margin: 2rem 0 .4rem; }}
p {{ margin: .5rem 0; max-width: 44rem; }}
.lead {{ font-size: 1.15rem; }}
.soft, caption, figcaption, .axis, footer {{ color: var(--soft); }}
a {{ color: var(--link); text-underline-offset: .15em; }}
:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
table, dl, .legend, .queries, summary, .small, figcaption, footer, svg text {{
  font-family: -apple-system, "Segoe UI", "Helvetica Neue", Inter, Roboto, "Liberation Sans", Arial,
    sans-serif;
}}
.state {{ font-weight: 600; }}
td .state {{ font-weight: 400; }}
.state.unfinished {{ color: var(--wrong); }}
.state.finished {{ color: var(--right); }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: 1.4rem 0;
  font-size: .94rem; }}
dt {{ color: var(--soft); }}
dd {{ margin: 0; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: .9rem; line-height: 1.35; }}
caption {{ text-align: left; padding-bottom: .5rem; font-size: .9rem; }}
th, td {{ padding: .32rem .8rem; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); }}
th:first-child, td:first-child {{ padding-left: 0; }}
thead th {{ border-bottom: 1px solid var(--soft); font-weight: 600; vertical-align: bottom; }}
tbody th {{ font-weight: 400; max-width: 24rem; }}
tbody th:not(.number), tbody td:not(.number, .cell) {{ min-width: 6rem; }}
.number {{ text-align: right; white-space: nowrap; }}
.cell {{ text-align: center; min-width: 2.5rem; padding: .32rem .3rem; }}
.marked th, .marked td {{ background: var(--mark); font-weight: 600; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1.5rem 2.5rem; align-items: start; margin: 1.2rem 0; }}
.pair > * {{ min-width: 0; }}
.pair .scroll {{ margin: 0; }}
figure {{ margin: 0; max-width: 32rem; }}
figcaption {{ font-size: .88rem; line-height: 1.45; margin-top: .5rem; }}
.chart {{ display: block; width: 100%; height: auto; }}
svg text {{ font-size: 11.5px; fill: var(--ink); }}
svg .axis {{ fill: var(--soft); }}
.grid, .tick {{ fill: none; stroke: var(--rule); }}
.tick {{ stroke: var(--soft); }}
.line {{ fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }}
.faint {{ fill: none; stroke: currentColor; stroke-width: 1; opacity: .28; }}
.band {{ fill: currentColor; opacity: .18; }}
.marker {{ fill: currentColor; stroke: var(--paper); stroke-width: 1; }}
{_SERIES}
.chance {{ color: var(--soft); }}
.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0;
  margin: .3rem 0 0; font-size: .88rem; }}
.swatch {{ width: 32px; height: 14px; margin-right: .45rem; vertical-align: -2px; }}
.bar {{ width: 60px; height: 12px; margin-left: .6rem; vertical-align: -1px; }}
.rail {{ fill: var(--rule); }}
.filled {{ fill: var(--s0); }}
.hit1, .hit2, .hit3, .hit4 {{
  background: color-mix(in srgb, var(--s0) var(--depth), transparent); }}
.miss1, .miss2, .miss3, .miss4 {{
  background: color-mix(in srgb, var(--s1) var(--depth), transparent); }}
.hit1, .miss1 {{ --depth: 12%; }} .hit2, .miss2 {{ --depth: 20%; }}
.hit3, .miss3 {{ --depth: 28%; }} .hit4, .miss4 {{ --depth: 38%; }}
.key {{ display: inline-block; min-width: 1.5em; font-weight: 600; }}
.task {{ margin: 1.2rem 0 0; padding: .7rem 0 .2rem; border-top: 1px solid var(--rule);
  display: grid; grid-template-columns: minmax(5.5rem, auto) 1fr; gap: .2rem 1.2rem; }}
.task > * {{ min-width: 0; max-width: 22rem; }}
.task > :last-child {{ max-width: none; }}
.task h4 {{ margin: 0; font-size: .95rem; font-weight: 600; grid-column: 1 / -1; }}
.queries {{ list-style: none; display: flex; flex-wrap: wrap; gap: .4rem .25rem; margin: 0 0 .4rem;
  padding: 0; font-size: .8rem; line-height: 1.3; }}
.queries li {{ padding: 3px; border: 1px solid transparent; border-radius: 3px;
  text-align: center; }}
.queries .right {{ color: var(--right); }}
.queries .wrong {{ color: var(--wrong); border: 1px dashed var(--wrong); font-weight: 600; }}
.queries img {{ display: block; margin: 0 auto 2px; max-width: 100%; height: auto;
  image-rendering: pixelated; outline: 1px solid var(--rule); }}
.small {{ font-size: .85rem; margin: 0 0 .3rem; }}
details {{ margin: 1rem 0; }}
summary {{ cursor: pointer; font-size: .95rem; color: var(--link); }}
details caption {{ position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }}
.notes {{ padding-left: 1.1rem; }}
footer {{ margin-top: 4rem; padding-top: .9rem; border-top: 1px solid var(--rule);
  font-size: .85rem; }}
@media (max-width: 34rem) {{
  body {{ padding: 1.6rem 1rem 2.5rem; }}
  h1 {{ font-size: 1.6rem; }}
  dl {{ column-gap: 1rem; font-size: .9rem; }}
  table {{ font-size: .84rem; }}
  th, td {{ padding: .3rem .55rem; }}
  .cell {{ min-width: 1.9rem; padding: .3rem .2rem; }}
  .bar {{ width: 36px; margin-left: .3rem; }}
  .task {{ grid-template-columns: 1fr; }}
}}
@media print {{
  :root {{ color-scheme: light; --paper: #fff; --sheet: #fff; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  @page {{ margin: 18mm 16mm; }}
  body {{ max-width: none; padding: 0; font-size: 10pt; }}
  h1, h2, h3, h4, h2 + p, h3 + p, caption, summary {{ break-after: avoid; }}
  h2 {{ margin-top: 2rem; }}
  p, figure, tr, caption, .task, .scroll, .keep {{ break-inside: avoid; }}
  .scroll {{ overflow: visible; }}
  table {{ max-width: 100%; font-size: 8.5pt; }}
  caption, figcaption, .legend {{ font-size: 8.5pt; }}
  thead {{ display: table-header-group; }}
  th, td {{ padding: .2rem .4rem; }}
  tbody th:not(.number), tbody td:not(.number, .cell) {{ min-width: 3rem; }}
  .number {{ white-space: normal; }}
  .cell {{ min-width: 1rem; padding: .2rem; }}
  .pair {{ grid-template-columns: 1fr 1fr; }}
  details::details-content {{ content-visibility: visible; block-size: auto; opacity: 1; }}
  summary {{ color: var(--ink); list-style: none; font-weight: 600; }}
  a::after {{ content: " (" attr(href) ")"; }}
}}
"""
