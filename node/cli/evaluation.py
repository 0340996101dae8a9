"""The tables of ``latent-pacs model evaluate``."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def evaluation_tables(results: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[Table]:
    """One table by image and rung, and one by rung, pooled over digital images."""
    return [_by_image(results), _pooled(rows)]


def _by_image(results: list[dict[str, Any]]) -> Table:
    table = Table(
        "image",
        "rung",
        "bits/px",
        "MSE ratio",
        "PSNR base",
        "model",
        "detail",
        "FSIM base",
        "model",
        "detail",
        "s",
        title="by image (FSIM: mean / 5th percentile of 256-pixel tiles)",
    )
    for result in results:
        arms = [result[name] for name in ("base", "model", "model_detail")]
        table.add_row(
            result["image"] + (" (film)" if result["film"] else ""),
            f"x{result['scale']} d{result['distance']:g}",
            f"{result['bpp']:.3f}",
            f"{result['mse_ratio']:.4f}",
            *(f"{arm['psnr_db']:.2f}" for arm in arms),
            *(f"{arm['fsim_mean']:.3f} / {arm['fsim_p5']:.3f}" for arm in arms),
            f"{result['seconds']:.1f}",
        )
    return table


def _pooled(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "rung",
        "images",
        "MSE ratio",
        "worst",
        "regression",
        "detail: FSIM mean",
        "p5",
        "PSNR",
        "noise + bicubic: mean",
        "p5",
        "PSNR",
        "spectrum closer",
        title="pooled; figures with detail are differences to the base (damped bicubic)",
    )
    for row in rows:
        base = row["base"]
        differences = [
            f"{row[arm][figure] - base[figure]:+.4f}"
            for arm in ("model_detail", "bicubic_detail")
            for figure in ("fsim_mean", "fsim_p5", "psnr_db")
        ]
        table.add_row(
            row["rung"],
            str(row["images"]),
            f"{row['mse_ratio']:.4f}",
            f"{row['worst_mse_ratio']:.4f}",
            f"{row['ablation_mse_ratio']:.4f}" if "ablation_mse_ratio" in row else "-",
            *differences,
            "yes" if row["closer_in_every_band"] else "no",
        )
    return table
