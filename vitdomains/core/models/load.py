"""Loading a state dictionary into a model: what fits is loaded, the rest is logged, and too little is an error."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

from torch import nn

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import WeightsError
from vitdomains.core.models import state_dicts
from vitdomains.core.models.introspect import layer_ids
from vitdomains.core.models.state_dicts import State
from vitdomains.core.models.weights import WeightsFile

_log = logging.getLogger(__name__)
ENOUGH = 0.9  # share of the parameters outside the head that a file must fill
RESEMBLES = 0.5  # below this share the file is of another model, and filling the rest at random is no way out
_ADDED = re.compile(r"(reg_token|dist_token|mask_token|register_tokens|distillation_token)$")  # tokens that may be new


def load_into(model: nn.Module, state: State, spec: Model, file: WeightsFile) -> None:
    """Load ``state``, as read, into the ViT written here or a timm model, in place, and log what did not fit.

    Positions are resampled, the first convolution is adapted to ``spec.channels``, a head of another size is left new.

    Raises:
        WeightsError: Less than 90 % of the parameters outside the head are filled, or the patch embedding or the positions are
            not, and ``spec.allow_partial`` is false; or nothing is filled.
    """
    own = model.state_dict()
    state = state_dicts.canonical(state, own)
    looks = state_dicts.looks_like(state)
    if state_dicts.is_vit(state) and "pos_embed" in own and own["pos_embed"].ndim == 3:
        state = state_dicts.resample_state(state, own)
    elif convert := getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None):
        state = dict(convert(state, model))
    state = _adapt_first_convolution(state, own, spec.channels)
    fits = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    depth = layer_ids(model)
    head = {name for name in own if depth.get(name) == max(depth.values())}
    first = {name for name in own if depth.get(name) == 0}
    others = sorted(name for name in state if name not in own and not name.startswith(("head", "classifier", "fc.")))
    _report(spec, file, looks, own, {name for name in own if name not in fits}, head, first, others)
    model.load_state_dict(fits, strict=False)


def _adapt_first_convolution(state: State, own: State, channels: int) -> State:
    for name, value in own.items():
        given = state.get(name)
        if value.ndim == 4 and given is not None and given.ndim == 4 and value.shape != given.shape:
            if value.shape[1] == channels and (value.shape[0], value.shape[2:]) == (given.shape[0], given.shape[2:]):
                _log.info("%s: %d input channels made from %d", name, channels, given.shape[1])
                return {**state, name: state_dicts.adapt_channels(given.float(), channels)}
            break
    return state


def _report(
    spec: Model, file: WeightsFile, looks: str, own: State, absent: set[str], head: set[str], first: set[str],
    others: list[str],
) -> None:  # fmt: skip
    """Log what of the model the file did not fill; too little, or no first layer, is an error."""
    if absent & head:
        _log.info("%s: the head is new; %s has none of this size", spec.name, file.path.name)
    body = {name: value.numel() for name, value in own.items() if name not in head}
    lacking = sorted(absent - head)
    share = 1 - sum(body[name] for name in lacking) / max(1, sum(body.values()))
    if not lacking and not others:
        return
    found = (
        f"{file.path} fills {share:.1%} of {spec.name}; "
        f"missing or of another shape: {state_dicts.listed(lacking)}; unused: {state_dicts.listed(others)}"
    )
    vital = [name for name in lacking if name in first and not _ADDED.search(name)]
    enough = share >= ENOUGH and not vital
    if share == 0 or not (enough or spec.allow_partial):
        hint = looks + "Check that model.name and model.options fit the file"
        if share >= RESEMBLES:
            hint += ", or set model.allow_partial to true: what is missing then starts at random"
        raise WeightsError(f"{found}.", hint=f"{hint}.")
    _log.warning(found)


def load_transformers(model: nn.Module, state: State, spec: Model, file: WeightsFile) -> nn.Module:
    """Load ``state`` into a transformers classifier, which renames older names by itself; returns the loaded model.

    Raises:
        WeightsError: As ``load_into``.
    """
    from transformers.utils import logging as their_logging

    own: State = model.state_dict()
    base = f"{model.base_model_prefix}."
    looks = state_dicts.looks_like(state_dicts.canonical(state))
    state = state_dicts.backbone(state, {*own, *(name.removeprefix(base) for name in own)})
    for name, value in list(state.items()):
        target = next((own[key] for key in own if key.endswith(name) or name.endswith(key)), None)
        if target is None or target.shape == value.shape:
            continue
        if name.endswith("embeddings.position_embeddings"):
            prefix = 2 if model.config.model_type == "deit" else 1  # type: ignore[union-attr]
            state = state_dicts.resample_positions(state, name, target.shape, prefix, prefix)
        elif name.endswith("patch_embeddings.projection.weight") and target.shape[2:] == value.shape[2:]:
            state = {**state, name: state_dicts.adapt_channels(value.float(), spec.channels)}
    quiet: Any = their_logging
    verbosity, bars = quiet.get_verbosity(), quiet.is_progress_bar_enabled()
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        loaded, info = type(model).from_pretrained(  # type: ignore[attr-defined]
            None, config=model.config, state_dict=state, ignore_mismatched_sizes=True, output_loading_info=True
        )
    finally:
        quiet.set_verbosity(verbosity)
        if bars:
            quiet.enable_progress_bar()
    absent = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])} & own.keys()
    head = {name for name in own if not name.startswith(base)}
    first = {name for name in own if ".embeddings." in name}
    _report(spec, file, looks, own, absent, head, first, sorted(info["unexpected_keys"]))
    return loaded.train()  # type: ignore[no-any-return]
