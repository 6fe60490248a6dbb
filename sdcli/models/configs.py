"""Config files of models, which are other people's input: which classes and which keys are let through.

Nothing in a config may name code to import. A component's class comes from our own table. Only keys on the list reach a
constructor, with plain numbers, words and short lists as values; a key that asks for what is not done is refused by
name, and what else other versions of the libraries have left there is passed over.
"""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any, Literal

from sdcli.errors import SdcliError, echo
from sdcli.models.networks import fault_of, is_usable
from sdcli.models.schedulers import SETTINGS, lacks_scipy
from sdcli.models.schedulers import is_usable as is_usable_in_a_scheduler
from sdcli.units import MIB

ComponentName = Literal["text_encoder", "unet", "vae", "scheduler", "tokenizer"]

CONFIG_LIMIT_BYTES = 1 * MIB

CONFIG_FILES: dict[ComponentName, str] = {
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}

SCHEDULERS = {
    "DDIMParallelScheduler": "scheduling_ddim_parallel",
    "DDIMScheduler": "scheduling_ddim",
    "DDPMParallelScheduler": "scheduling_ddpm_parallel",
    "DDPMScheduler": "scheduling_ddpm",
    "DEISMultistepScheduler": "scheduling_deis_multistep",
    "DPMSolverMultistepScheduler": "scheduling_dpmsolver_multistep",
    "DPMSolverSinglestepScheduler": "scheduling_dpmsolver_singlestep",
    "EDMDPMSolverMultistepScheduler": "scheduling_edm_dpmsolver_multistep",
    "EDMEulerScheduler": "scheduling_edm_euler",
    "EulerAncestralDiscreteScheduler": "scheduling_euler_ancestral_discrete",
    "EulerDiscreteScheduler": "scheduling_euler_discrete",
    "HeunDiscreteScheduler": "scheduling_heun_discrete",
    "IPNDMScheduler": "scheduling_ipndm",
    "KDPM2AncestralDiscreteScheduler": "scheduling_k_dpm_2_ancestral_discrete",
    "KDPM2DiscreteScheduler": "scheduling_k_dpm_2_discrete",
    "LCMScheduler": "scheduling_lcm",
    "LMSDiscreteScheduler": "scheduling_lms_discrete",
    "PNDMScheduler": "scheduling_pndm",
    "SASolverScheduler": "scheduling_sasolver",
    "TCDScheduler": "scheduling_tcd",
    "UniPCMultistepScheduler": "scheduling_unipc_multistep",
}
"""The schedulers a model may name, and the module of diffusers.schedulers each lives in."""

CLASSES: dict[ComponentName, frozenset[str]] = {
    "text_encoder": frozenset({"CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"}),
    "unet": frozenset({"UNet2DConditionModel"}),
    "vae": frozenset({"AutoencoderKL"}),
    "scheduler": frozenset(SCHEDULERS),
    "tokenizer": frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}),
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOTES = _words(
    "_class_name _diffusers_version _name_or_path _commit_hash architectures model_type torch_dtype dtype "
    "transformers_version name_or_path "
    # of use in training only, or for what is not asked for: pooled and projected words, words from tokens
    "dropout attention_dropout initializer_range initializer_factor projection_dim bos_token_id eos_token_id "
    "pad_token_id return_dict tie_word_embeddings tokenizer_class tokenizer_file special_tokens_map_file is_local "
    "local_files_only backend do_lower_case errors add_prefix_space add_bos_token add_eos_token "
    "clean_up_tokenization_spaces processor_class use_fast"
)
"""Keys that the libraries write and that have no say in a picture. They are read for the class name, if at all."""

_ALLOWED: dict[ComponentName, frozenset[str]] = {
    "unet": _words(
        "sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift down_block_types "
        "mid_block_type up_block_types only_cross_attention block_out_channels layers_per_block downsample_padding "
        "mid_block_scale_factor act_fn norm_num_groups norm_eps cross_attention_dim transformer_layers_per_block "
        "attention_head_dim use_linear_projection upcast_attention resnet_time_scale_shift resnet_skip_time_act "
        "resnet_out_scale_factor time_embedding_type time_embedding_dim timestep_post_act time_cond_proj_dim "
        "conv_in_kernel conv_out_kernel mid_block_only_cross_attention"
    ),
    "vae": _words(
        "in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block act_fn "
        "latent_channels norm_num_groups sample_size scaling_factor force_upcast use_quant_conv use_post_quant_conv "
        "mid_block_add_attention"
    ),
    "text_encoder": _words(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings "
        "hidden_act layer_norm_eps"
    ),
    "scheduler": frozenset().union(*SETTINGS.values()),
    "tokenizer": _words(
        "bos_token eos_token unk_token sep_token pad_token cls_token mask_token added_tokens_decoder "
        "additional_special_tokens extra_special_tokens split_special_tokens model_max_length padding_side"
    ),
}

_OTHER_USES: dict[ComponentName, frozenset[str]] = {
    "unet": _words(
        "encoder_hid_dim encoder_hid_dim_type class_embed_type addition_embed_type addition_time_embed_dim "
        "num_class_embeds time_embedding_act_fn projection_class_embeddings_input_dim "
        "class_embeddings_concat cross_attention_norm addition_embed_type_num_heads num_attention_heads "
        "reverse_transformer_layers_per_block dual_cross_attention attention_type quantization_config"
    ),
    "vae": _words("shift_factor latents_mean latents_std quantization_config"),
    "text_encoder": _words("use_attention_mask is_causal quantization_config"),
    "scheduler": _words("use_flow_sigmas flow_shift use_dynamic_shifting time_shift_type shift_terminal"),
    "tokenizer": _words("fast_tokenizer_files gguf_file"),
}
"""Keys that would change the picture and are not honoured: let through only while they are unset."""

_CODE = _words("auto_map custom_pipeline trust_remote_code")
"""Keys that name somebody's program."""

_UNSET: dict[str, object] = {
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "flow_shift": 1.0,
    "is_causal": True,
    "time_shift_type": "exponential",
}
"""What some of them are while unset; null is unset, and for the others false, zero and empty are."""

_LAYER_COUNTS = _words("layers_per_block num_hidden_layers transformer_layers_per_block")
_LAYERS_LIMIT, _NUMBER_LIMIT = 64, 10**6
"""Far above any model of these families: a config must not ask for a million layers, or for tables of terabytes."""

_LENGTH_LIMIT = 32
"""Entries of a list: one a block of the network."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of modest size. Raises SdcliError when it is anything else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device never ends
            raise SdcliError(f"{echo(path)} is not a regular file: fetch it again")
        with path.open("rb") as file:
            raw = file.read(CONFIG_LIMIT_BYTES + 1)
        if len(raw) > CONFIG_LIMIT_BYTES:
            raise SdcliError(f"{echo(path)} is too large for a config file: refused")
        table = json.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise SdcliError(f"cannot read {echo(path)}: {error.strerror}; check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise SdcliError(f"{echo(path)} is not valid JSON ({echo(error)}): fetch it again") from error
    if not isinstance(table, dict):
        raise SdcliError(f"{echo(path)} is not a table of settings: fetch it again")
    return table


def class_name(component: ComponentName, table: dict[str, Any], path: Path) -> str:
    """The class a config asks for, if our table has it. Raises SdcliError otherwise; nothing is imported."""
    name = table.get("_class_name")
    if name is None and component == "text_encoder":
        name = table.get("architectures") or "CLIPTextModel"
        name = name[0] if isinstance(name, list) else name
    elif name is None and component == "tokenizer":
        name = table.get("tokenizer_class") or "CLIPTokenizer"
    if not isinstance(name, str) or name not in CLASSES[component]:
        asked = f"asks for the class {echo(name)}" if isinstance(name, str) else "names no class"
        names = sorted(CLASSES[component])
        hint = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        if component == "scheduler":
            hint = f"{' '.join(name.removesuffix('Scheduler') for name in names)}Scheduler: edit _class_name"
        shown = 40 if component == "scheduler" else 80  # so that all of them fit into a message
        raise SdcliError(f"{echo(path, shown)} {asked}: refused; a {component} may be {hint}")
    return name


def checked_config(component: ComponentName, table: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of a config that reach a constructor. Raises SdcliError for what is asked for and not done.

    And for a value that no constructor takes.
    """
    for key in table:
        if key in _CODE:
            raise SdcliError(f"{echo(path)} sets {echo(key)}: refused; no code that a model brings is run")
    if component == "scheduler":
        return _scheduler_config(table, path)
    kept = {}
    for key, value in table.items():
        if key in _OTHER_USES[component] and value is not None and (value != _UNSET[key] if key in _UNSET else value):
            raise SdcliError(f"{echo(path)} sets {echo(key)}: that is another family of model, not supported yet")
        if key in _ALLOWED[component]:
            if component != "tokenizer" and not (_plain(key, value) and is_usable(key, value)):
                raise SdcliError(f"{echo(path)} sets {echo(key)} to what no known model has: refused; fetch it again")
            kept[key] = value
    if component in ("unet", "vae", "text_encoder") and (fault := fault_of(component, kept)):
        raise SdcliError(f"{echo(path)} {fault}: refused; fetch it again")
    return kept


def keys_passed_over(component: ComponentName, table: dict[str, Any]) -> list[str]:
    """The keys of a config that are not known here: no constructor gets to see them."""
    return sorted(set(table) - _NOTES - _ALLOWED[component] - _OTHER_USES[component])


def _scheduler_config(table: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings that some scheduler takes. What the config's own class does not take may be anything."""
    taken = SETTINGS.get(str(table.get("_class_name")), _ALLOWED["scheduler"])
    kept = {}
    for key, value in table.items():
        if key in _OTHER_USES["scheduler"] and value and value != _UNSET.get(key):
            raise SdcliError(f"{echo(path)} sets {echo(key)}: that is another family of model, not supported yet")
        if key in taken and not is_usable_in_a_scheduler(key, value):
            raise SdcliError(f"{echo(path)} sets {echo(key)} to what no known scheduler has: refused; correct it")
        if key in _ALLOWED["scheduler"] and is_usable_in_a_scheduler(key, value):
            kept[key] = value
    if table.get("predict_epsilon") is False:  # what it was called before diffusers 0.10
        kept["prediction_type"] = "sample"
    if "use_beta_sigmas" in taken and lacks_scipy(kept):
        raise SdcliError(f"{echo(path)} sets 'use_beta_sigmas', which needs scipy: install it, or set it to false")
    return kept


def _plain(key: str, value: object, depth: int = 0) -> bool:
    """Whether a value is a finite number, a word, or a short list of such."""
    if isinstance(value, list):
        return depth < 2 and len(value) <= _LENGTH_LIMIT and all(_plain(key, item, depth + 1) for item in value)
    if isinstance(value, int):
        return abs(value) <= (_LAYERS_LIMIT if key in _LAYER_COUNTS else _NUMBER_LIMIT)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, str) and len(value) <= 64)
