"""Makes a tiny copy of stabilityai/sd-x2-latent-upscaler: the same classes and layout on disk, random weights.

It runs the whole code path of ``sd_x2`` without a download; its pictures mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Hidden size of the tiny CLIP; the k-upscaler joins 128 noise-level features and one pooled CLIP embedding.
_CLIP_WIDTH = 32


def build(folder: Path, seed: int = 0) -> Path:
    """Save the tiny pipeline (4 MB) below ``folder`` and return its path. The same seed gives the same weights."""
    import torch
    from diffusers import StableDiffusionLatentUpscalePipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionLatentUpscalePipeline(
            vae=_vae(),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(folder / "vocabulary"),
            unet=_unet(),
            scheduler=_scheduler(),
        )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


def _unet() -> Any:
    """The k-diffusion UNet. Inputs: 4 noisy latents and 4 of the image. Outputs: 4 latents and 1 variance that is not
    used."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=8,
        out_channels=5,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,  # 4 in the real one
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        mid_block_type=None,
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        act_fn="gelu",
        norm_num_groups=None,
        attention_head_dim=8,
        cross_attention_dim=_CLIP_WIDTH,
        cross_attention_norm="layer_norm",
        only_cross_attention=False,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        time_cond_proj_dim=128 + _CLIP_WIDTH,
        conv_in_kernel=1,
        conv_out_kernel=1,
    ).eval()


def _vae() -> Any:
    """Stable Diffusion's autoencoder in miniature: 8 pixels to one latent of 4 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.18215,
    ).eval()


def _scheduler() -> Any:
    """Stable Diffusion's betas, with log-linear sigmas, so that the loop ends at 0.029 as with the real model."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="original_sample",
        interpolation_type="log_linear",
    )


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=_CLIP_WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return CLIPTextModel(config).eval()


def _tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer without merges: every byte, every byte at the end of a word, start and end of text."""
    from transformers import CLIPTokenizer

    # CLIP writes the bytes that do not print as code points from 256 on.
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    letters = [chr(byte) for byte in printing] + [chr(256 + k) for k in range(len(others))]
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}), encoding="utf-8"
    )
    return CLIPTokenizer.from_pretrained(str(folder))
