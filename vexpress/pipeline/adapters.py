"""Adapters in a pipeline: loaded beside the weights, fused into them, and taken out again without a trace."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vexpress.errors import InputError
from vexpress.models import lora
from vexpress.pipeline import inputs
from vexpress.pipeline.parts import PipelineParts
from vexpress.weights import attach_adapter, base_digest, load_adapter, load_networks

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

logger = logging.getLogger(__name__)

NETWORKS = ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection", "attribute_projection")
LARGEST_WEIGHT = 100.0


def split_weight(text: str) -> tuple[str, float]:
    """`PATH:WEIGHT` -> path and weight; 1 where there is none."""
    path, _, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if path else (text, 1.0)
    except ValueError:  # such as C:\\adapter.safetensors
        return text, 1.0


class PipelineAdapters(PipelineParts):
    """Adapters, with the methods that diffusers' pipelines have for them.

    Differs from diffusers: without adapters the result is that of the base model bit for bit, also after they were
    fused, since fusing keeps the weights that it changes; so `unload_lora_weights` takes out fused ones as well.
    """

    _adapters: Mapping[str, float] = {}  # name -> weight, of what is loaded
    _are_disabled = False
    _unfused: Mapping[nn.Module, Tensor] | None = None  # layer -> what its weights were, while adapters are fused

    def load_lora_weights(
        self, path: str | PathLike, adapter_name: str | None = None, weight: float = 1.0, check_base: bool = True
    ) -> str:
        """Loads an adapter, which works from then on, together with those that are loaded already.

        Args:
            path: file of an adapter, as training writes it.
            adapter_name: letters, digits and underscores; None: one is made.
            weight: how much it counts.
            check_base: False also takes one that was trained on another base model, such as a distilled one's teacher.

        Returns:
            The adapter's name.

        Raises:
            InputError: no such adapter, it does not fit, or it was trained on another base model.
        """
        self._check_not_fused("load_lora_weights")
        inputs.check_number("weight", weight, -LARGEST_WEIGHT, LARGEST_WEIGHT)
        name = adapter_name or next(n for i in itertools.count() if (n := f"adapter_{i}") not in self._adapters)
        if not name.isidentifier() or name in self._adapters:
            raise InputError("must be a name of letters, digits and underscores, not used yet", "adapter_name", name)
        adapter = load_adapter(path)
        if check_base and (found := self._base_digest()) != adapter.base_model:
            raise InputError(
                f"was trained on another base model: its digest is {adapter.base_model[:12]}, and this model's "
                f"{found[:12]}; load that model, or set `lora_any_base` to use it nonetheless",
                "lora",
                path,
            )
        attach_adapter(self._networks, adapter, path, name)
        self._adapters = {**self._adapters, name: float(weight)}
        self._apply_weights()
        return name

    def use_adapters(self, files: Sequence[str], check_base: bool = True) -> None:
        """Loads adapters for good: they are fused, and nothing but `unload_lora_weights` is possible afterwards.

        Args:
            files: `PATH` or `PATH:WEIGHT` each.
            check_base: see `load_lora_weights`.

        Raises:
            InputError: as `load_lora_weights`.
        """
        loaded: list[str] = []
        try:
            for path, weight in map(split_weight, files):
                loaded.append(self.load_lora_weights(path, None, weight, check_base))
        except Exception:
            self._forget(loaded)
            raise
        if files:
            self.fuse_lora()
            for network in self._networks.values():
                lora.remove_adapters(network)  # of which the plain layers, with other weights, are left
            logger.info("adapters: %s", ", ".join(files))

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] = 1.0) -> None:
        """Sets how much adapters count; those that are not named do not count.

        Raises:
            InputError: no such adapter, or as many weights as names are not given.
        """
        self._check_not_fused("set_adapters")
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if unknown := [name for name in names if name not in self._adapters]:
            raise InputError(f"is not loaded; loaded are {', '.join(self._adapters) or 'none'}", "adapter", unknown[0])
        if len(weights) != len(names):
            raise InputError(f"{len(names)} adapters need as many weights", "adapter_weights", list(weights))
        for weight in weights:
            inputs.check_number("adapter_weights", weight, -LARGEST_WEIGHT, LARGEST_WEIGHT)
        self._adapters = {**dict.fromkeys(self._adapters, 0.0), **dict(zip(names, map(float, weights)))}
        self._apply_weights()

    def disable_lora(self) -> None:
        """Has all adapters count for nothing, also those that are loaded later, until `enable_lora`."""
        self._check_not_fused("disable_lora")
        self._are_disabled = True
        self._apply_weights()

    def enable_lora(self) -> None:
        """Undoes `disable_lora`."""
        self._check_not_fused("enable_lora")
        self._are_disabled = False
        self._apply_weights()

    @torch.no_grad()
    def fuse_lora(self, lora_scale: float = 1.0) -> None:
        """Adds what adapters do to the weights, so that they cost no time; host memory keeps what the weights were.

        Args:
            lora_scale: how much all of them count, on top of their weights.

        Raises:
            InputError: they are fused already, or weights would not be finite.
        """
        self._check_not_fused("fuse_lora")
        inputs.check_number("lora_scale", lora_scale, -LARGEST_WEIGHT, LARGEST_WEIGHT)
        layers = self._adapter_layers()
        if not layers or any(layer.disable_adapters for layer in layers):
            raise InputError("fuse_lora: no adapter is loaded, or they are disabled; call enable_lora first")
        base_layers = [layer.get_base_layer() for layer in layers]
        self._unfused = {layer: layer.weight.detach().cpu().clone() for layer in base_layers}
        for layer in layers:
            weight, total = layer.get_base_layer().weight, 0
            for name in layer.lora_A:
                total = total + layer.get_delta_weight(name).float() * lora_scale
            weight.copy_(weight.float() + total)
            layer.merged_adapters = list(layer.lora_A)
            if not weight.isfinite().all():
                self.unfuse_lora()
                raise InputError("makes weights that are not finite", "lora_scale", lora_scale)

    @torch.no_grad()
    def unfuse_lora(self) -> None:
        """Undoes `fuse_lora`: the weights are what they were, and adapters work beside them."""
        for layer, weight in (self._unfused or {}).items():
            layer.weight.copy_(weight)
        self._unfused = None
        layers = self._adapter_layers()
        for layer in layers:
            layer.merged_adapters = []
        if not layers:  # after `use_adapters`
            self._adapters = {}

    def unload_lora_weights(self) -> None:
        """Takes all adapters out, fused or not: the base model is left, bit for bit."""
        self.unfuse_lora()
        for network in self._networks.values():
            lora.remove_adapters(network)
        self._adapters, self._are_disabled = {}, False

    def save_pretrained(self, *args, **kwargs) -> None:
        """As `DiffusionPipeline.save_pretrained`, of a pipeline without adapters.

        Raises:
            InputError: there are some.
        """
        if self._adapters:
            raise InputError("adapters are not saved with a pipeline: call unload_lora_weights first")
        self._lay_out_autoencoders(torch.contiguous_format)  # safetensors writes no other
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self._lay_out_autoencoders(self._memory_format)

    @property
    def _networks(self) -> dict[str, nn.Module]:
        return {name: network for name in NETWORKS if (network := getattr(self, name)) is not None}

    def _adapter_layers(self) -> "list[LoraLayer]":
        return [layer for network in self._networks.values() for layer in lora.adapter_layers(network).values()]

    def _base_digest(self) -> str:
        """See `base_digest`; of networks in bf16, which show less than the digest is of, that of their files."""
        networks = self._networks
        if any(network.dtype == torch.bfloat16 for network in networks.values()):
            if self.model_paths is None:
                raise InputError("networks in bf16 cannot be told apart; load them in fp16 or fp32", "check_base", True)
            networks = load_networks(self.model_paths, torch.float16)
        return base_digest(networks)

    def _apply_weights(self) -> None:
        for network in self._networks.values():
            lora.weigh_adapters(network, self._adapters)
            lora.enable_adapters(network, not self._are_disabled)

    def _forget(self, names: Sequence[str]) -> None:
        """Takes out some of the adapters that are not fused."""
        self._adapters = {name: weight for name, weight in self._adapters.items() if name not in names}
        for network in self._networks.values():
            lora.delete_adapters(network, names)
        self._apply_weights()

    def _check_not_fused(self, what: str) -> None:
        if self._unfused is not None:
            raise InputError(f"{what}: adapters are fused; call unfuse_lora or unload_lora_weights first")
