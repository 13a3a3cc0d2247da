"""Random but plausible parameters for networks that are not trained.

A fresh network has gamma = 1, beta = mean = 0, var = 1 everywhere: folding it would prove nothing. Pure noise
makes activations explode. So the statistics are measured on random images first (they keep the activations
near 1) and then shaken.
"""

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm of `model`, in the order of definition."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


@torch.no_grad()
def randomise(model: nn.Module, images: torch.Tensor, seed: int, *, keep_affine_every: int = 0) -> nn.Module:
    """Draw every parameter and statistic of `model` anew, deterministically, and leave it in inference mode.

    Every `keep_affine_every`-th BatchNorm (none at 0) keeps gamma = 1 and beta = 0, as an untrained layer or
    one without affine has them.
    """
    generator = torch.Generator().manual_seed(seed)
    _draw_weights(model, generator)
    norms = batch_norms(model)
    for index, norm in enumerate(norms):
        if not keep_affine_every or index % keep_affine_every:
            _draw_affine(norm, generator)
    _damp_residuals(model)
    measure_statistics(model, [images])
    for norm in norms:
        _shake_statistics(norm, generator)
    return model


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: list[torch.Tensor]) -> None:
    """Set running mean and variance to the plain average over `batches`; leaves `model` in inference mode."""
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for batch in batches:
        model(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Weights of variance 1 / fan-in, every other parameter of standard deviation 0.1."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            continue
        for parameter in module.parameters(recurse=False):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            is_weight = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            parameter.normal_(0, 1 / math.sqrt(fan_in) if is_weight else 0.1, generator=generator)


def _draw_affine(norm: _BatchNorm, generator: torch.Generator) -> None:
    """Gamma in 0.5 .. 1.5, an eighth of them (one at least) negative, exactly one zero; beta near zero."""
    count = norm.num_features
    order = torch.randperm(count, generator=generator)
    norm.weight.uniform_(0.5, 1.5, generator=generator)
    norm.weight[order[1 : 2 + count // 8]] *= -1
    norm.weight[order[0]] = 0
    norm.bias.normal_(0, 0.3, generator=generator)


def _damp_residuals(model: nn.Module) -> None:
    """Let LeViT's residual branches correct their input instead of drowning it.

    Undamped, random ones make chaos: a change of 1e-6 in the input turns the output over, and so would the
    rounding of a correct fold. LeViT itself starts them at gamma = 0.
    """
    for name, module in model.named_modules():
        if name.endswith((".module.projection.batch_norm", ".module.linear_down.batch_norm")):
            module.weight *= 0.1
            module.bias *= 0.1


def _shake_statistics(norm: _BatchNorm, generator: torch.Generator) -> None:
    """Move the measured mean by a fifth of the deviation and the variance by up to half."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError("a BatchNorm without running statistics cannot be exported in inference form")
    var.clamp_(min=0.05)
    mean += 0.2 * var.sqrt() * torch.empty_like(mean).normal_(0, 1, generator=generator)
    var *= torch.empty_like(var).uniform_(-0.4, 0.4, generator=generator).exp()
