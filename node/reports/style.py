"""How reports look: on a light and a dark screen, and on paper."""

from __future__ import annotations

CSS = """
:root{--paper:#fff;--ink:#1b2430;--soft:#5a6675;--line:#dde3ea;--card:#f6f8fa;--good:#1a7f4b;--warning:#a86400;
--bad:#bb2d3b;--neutral:#3d6fa8}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e6eaef;--soft:#9aa7b5;--line:#323b46;
--card:#1c2229;--good:#4cc38a;--warning:#e5a13c;--bad:#ff7b86;--neutral:#7fb0e6}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",
"Noto Sans",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:2.5rem 1.5rem 3rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .25rem;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
.subtitle,footer,.note,figcaption,caption,small{color:var(--soft)}
.subtitle{margin:0 0 1.25rem}
p{max-width:72ch}
.banner{border-left:6px solid var(--tone);background:var(--card);border-radius:6px;padding:.9rem 1.2rem}
.banner strong{font-size:1.25rem;color:var(--tone)}
.banner p{margin:.2rem 0 0}
.good{--tone:var(--good)}.warning{--tone:var(--warning)}.bad{--tone:var(--bad)}.neutral{--tone:var(--neutral)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.75rem;margin:1.25rem 0}
.card{background:var(--card);border-radius:6px;padding:.7rem .9rem}
.card dt{color:var(--soft);font-size:.85rem}
.card dd{margin:0;font-size:1.5rem;font-weight:600;font-variant-numeric:tabular-nums}
.card.good dd,.card.warning dd,.card.bad dd{color:var(--tone)}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.92rem}
caption{text-align:left;padding-bottom:.4rem}
th,td{padding:.4rem .7rem;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;color:var(--soft);text-align:left;white-space:nowrap;overflow-wrap:normal}
.l{text-align:left}.r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.mark{color:var(--tone);font-weight:600}
figure{margin:1rem 0;break-inside:avoid}
figcaption{font-size:.88rem;margin-top:.35rem}
.chart svg{width:100%;height:auto;color:var(--ink)}
.chart svg text{font-family:inherit!important;fill:currentColor}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:.75rem;align-items:start;
break-inside:avoid}
.beside figure{margin:0}
.beside img{width:100%;height:auto;display:block;border-radius:4px;background:#000}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--line);font-size:.85rem}
@media print{@page{size:A4;margin:14mm}main{max-width:none;padding:0}body{font-size:11px}h2{break-after:avoid}
.banner,.card{border:1px solid var(--line);print-color-adjust:exact;-webkit-print-color-adjust:exact}
.beside{grid-template-columns:repeat(3,1fr)}tr{break-inside:avoid}thead{display:table-header-group}}
"""
