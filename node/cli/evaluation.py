"""The tables of ``latent-pacs model evaluate``."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def evaluation_tables(results: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[Table]:
    """Three tables: by image and distance; bytes at the limits by image; the same pooled over images."""
    return [_by_distance(results), _by_image(results), _pooled(rows)]


def _by_distance(results: list[dict[str, Any]]) -> Table:
    table = Table(
        *("image", "point", "bytes", "lines base", "model", "lost base", "model", "seconds"),
        title="line error in units of local noise, at widths 1.2 / 2.5 / 5 px; lost share of each octave band",
    )
    for result in results:
        for point in result["points"]:
            table.add_row(
                _name(result),
                f"x{result['scale']} d{point['distance']:g}",
                f"{point['bytes']:,}",
                *(" ".join(f"{v:.2f}" for v in point[f"{of}_lines"]) for of in ("base", "model")),
                *(" ".join(f"{v:.3f}" for v in point[f"{of}_lost"]) for of in ("base", "model")),
                f"{point['seconds']:.1f}",
            )
    return table


def _by_image(results: list[dict[str, Any]]) -> Table:
    table = Table(
        "image",
        "scale",
        "base",
        "model",
        "model / base",
        title="payload bytes at which the line error meets its limits",
    )
    for result in results:
        base, model = result["base_bytes"], result["model_bytes"]
        ratio = f"{model / base:.3f}" if base and model else "-"
        table.add_row(_name(result), f"x{result['scale']}", *(f"{n:,}" if n else "-" for n in (base, model)), ratio)
    return table


def _pooled(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "scale", "images", "model / base", "worst", title="payload bytes at the limits, geometric mean over images"
    )
    for row in rows:
        ratios = f"{row['bytes_ratio']:.3f}", f"{row['worst_bytes_ratio']:.3f}"
        table.add_row(f"x{row['scale']}", str(row["images"]), *ratios)
    return table


def _name(result: dict[str, Any]) -> str:
    return str(result["image"]) + (" (film)" if result["film"] else "")
