"""Initialise a network from existing weights: a checkpoint of another run, or a converted weights file to be fine-tuned."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evburst.data.errors import CheckpointError
from evburst.models.bundle import Bundle, find_weights, load_tensors, read_kind

_SHOWN_LAYERS = 12
_LOG = logging.getLogger(__name__)


def start_from(model: nn.Module, weights: str | Path, batch: Tensor) -> None:
    """Copy every tensor that fits by name and shape, and leave the rest unchanged (e.g. a head with other classes).

    The batch norms of converted weights have been folded into the convolutions. New ones are fitted to `batch`, so that
    the network computes the same as before.

    Args:
        model: the network, modified in place.
        weights: best.safetensors of a run, a file written by convert.py, or the name of bundled weights.
        batch: `(N, 2 * bins, H, W)` float grids, prepared as in training.

    Raises:
        CheckpointError: the weights do not exist, or less than half of them fit, so that the architecture must differ.
    """
    path = find_weights(weights)
    own = model.state_dict()
    folded = read_kind(path) == "detector"
    tensors = _unfolded(Bundle.load(path), model) if folded else load_tensors(path, "ann")[0]
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    n_parameters = len(list(model.parameters()))
    if sum(name in fitting for name, _ in model.named_parameters()) < n_parameters // 2:
        raise CheckpointError(
            f"{path}: less than half of its tensors fit this network: another architecture; start from weights of the same one"
        )
    _name_the_rest(path, model, fitting)
    model.load_state_dict(fitting, strict=False)
    if folded:
        _measure_norms(model, batch)


def _name_the_rest(path: Path, model: nn.Module, fitting: dict[str, Tensor]) -> None:
    """Log which layers the weights have nothing for."""
    new = {name: tensor.numel() for name, tensor in model.named_parameters() if name not in fitting}
    if not new:
        return
    share = sum(new.values()) / sum(tensor.numel() for tensor in model.parameters())
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in new))
    shown = ", ".join(layers[:_SHOWN_LAYERS]) + (" ..." if len(layers) > _SHOWN_LAYERS else "")
    _LOG.info("%s: has nothing for %.0f %% of the parameters, which start at random: %s", path.name, 100 * share, shown)


def _unfolded(bundle: Bundle, model: nn.Module) -> dict[str, Tensor]:
    """Split folded convolutions into a convolution and a batch norm that only adds the bias."""
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    for name, tensor in bundle.graph.tensors.items():
        layer, _, what = name.rpartition(".")
        if what == "weight" or getattr(modules.get(layer), "bias", None) is not None:
            tensors[name] = tensor
            continue
        tensors |= _norm_that_adds(tensor, layer, modules)
    for node in bundle.graph.nodes:
        for layer in node.attrs.get("merged", ()):  # its weights are part of the convolution it was merged into
            if isinstance(conv := modules.get(layer), nn.Conv2d):
                tensors[f"{layer}.weight"] = torch.zeros_like(conv.weight)
                tensors |= _norm_that_adds(torch.zeros(conv.out_channels), layer, modules)
    return tensors


def _norm_that_adds(bias: Tensor, conv: str, modules: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of the batch norm after a convolution, if there is one, set so that it only adds a bias."""
    norm = _norm_after(conv, modules)
    if norm is None:
        return {}
    return {
        f"{norm}.bias": bias,
        f"{norm}.weight": torch.ones_like(bias),
        f"{norm}.running_mean": torch.zeros_like(bias),
        f"{norm}.running_var": torch.ones_like(bias) - modules[norm].eps,
    }


def _norm_after(conv: str, modules: dict[str, Any]) -> str | None:
    """Name of the batch norm that follows a convolution in order of definition, or None."""
    names = list(modules)
    if conv not in modules:
        return None
    for name in names[names.index(conv) + 1 :]:
        if isinstance(modules[name], nn.BatchNorm2d):
            return name
        if isinstance(modules[name], nn.Conv2d):
            return None
    return None


@torch.no_grad()
def _measure_norms(model: nn.Module, batch: Tensor) -> None:
    """Give every batch norm the statistics of a batch, and a gain and bias that cancel them.

    Each norm must only add its bias before.
    """

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        x = inputs[0].float()
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        norm.running_mean, norm.running_var = mean, variance  # type: ignore[assignment]
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)

    hooks = [m.register_forward_pre_hook(measure) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    training = model.training
    try:
        model.eval()(batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
