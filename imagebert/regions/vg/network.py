"""Faster R-CNN with ResNet-C4 as the published weights have it: convolutions, pooled features, classes, attributes.

Inference only. Each batch normalisation is folded into the convolution before it; pictures and regions lie with
channels last, which is how the fastest convolutions read them. All sizes are those of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from imagebert.regions.vg.rules import Heads

_EPSILON = 1e-5
# Regions that go through the last stage together: on a CPU what fits its cache, on a GPU what fills it.
_CPU_REGIONS, _GPU_REGIONS = 16, 4096

Weights = Mapping[str, torch.Tensor]


class Convolution:
    """A convolution and the batch normalisation behind it, if there is one, as one convolution with a bias."""

    def __init__(
        self, weights: Weights, name: str, dtype: torch.dtype, device: torch.device, stride: int = 1, dilation: int = 1
    ) -> None:
        weight = weights[f"{name}.weight"].double()
        if f"{name}.norm.weight" in weights:
            gain, bias, mean, variance = (
                weights[f"{name}.norm.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
            gain = gain / (variance + _EPSILON).sqrt()
            weight, bias = weight * gain[:, None, None, None], bias - mean * gain
        else:
            bias = weights[f"{name}.bias"].double()
        self.weight = weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
        self.bias = bias.to(device, dtype)
        self._how = stride, weight.shape[2] // 2 * dilation, dilation

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        stride, padding, dilation = self._how
        return torch.nn.functional.conv2d(maps, self.weight, self.bias, stride, padding, dilation)


class Block:
    """A bottleneck block (He et al. 2016, figure 5); its stride is in the first convolution, as in Caffe's networks."""

    def __init__(
        self, weights: Weights, name: str, dtype: torch.dtype, device: torch.device, stride: int, dilation: int
    ):
        self._shortcut = None
        if f"{name}.shortcut.weight" in weights:
            self._shortcut = Convolution(weights, f"{name}.shortcut", dtype, device, stride)
        self._first = Convolution(weights, f"{name}.conv1", dtype, device, stride)
        self._second = Convolution(weights, f"{name}.conv2", dtype, device, dilation=dilation)
        self._third = Convolution(weights, f"{name}.conv3", dtype, device)

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        inner = self._second(self._first(maps).relu_()).relu_()
        beside = maps if self._shortcut is None else self._shortcut(maps)
        return self._third(inner).add_(beside).relu_()


class Network:
    """The network of one detector.

    Args:
        weights: complete (weights.py sees to it)
        dtype: that convolutions are computed in; boxes and confidences are float32
    """

    def __init__(self, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._stem = Convolution(weights, "backbone.stem.conv1", dtype, device, stride=2)
        self._stages = [
            block
            for stage, stride in (("res2", 1), ("res3", 2), ("res4", 2))
            for block in self._stage(weights, f"backbone.{stage}", stride)
        ]
        self._last = self._stage(weights, "roi_heads.res5", 1, dilation=2)
        rpn, head = "proposal_generator.rpn_head", "roi_heads.box_predictor"
        self._rpn, self._objectness, self._moves = (
            Convolution(weights, f"{rpn}.{name}", dtype, device)
            for name in ("conv", "objectness_logits", "anchor_deltas")
        )
        self._linear = {
            name.removeprefix(head + "."): weights[name].to(device, torch.float32)
            for name in weights
            if name.startswith(head)
        }
        caffe = "cls_embed.weight" in self._linear
        names = ("cls_embed", "attr_linear1", "attr_linear2") if caffe else ("cls_embedding", "fc_attr", "attr_score")
        self._words, self._attribute, self._attribute_score = names

    def _stage(self, weights: Weights, name: str, stride: int, dilation: int = 1) -> list[Block]:
        numbers = {key[len(name) + 1 :].partition(".")[0] for key in weights if key.startswith(name + ".")}
        return [
            Block(weights, f"{name}.{n}", self.dtype, self.device, stride if n == 0 else 1, dilation)
            for n in range(len(numbers))
        ]

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures [b, 3, h, w] to the maps of the fourth stage [b, C, h/16, w/16]."""
        maps = pixels.to(self.device, self.dtype, memory_format=torch.channels_last)
        maps = self._stem(maps).relu_()
        # Caffe's rule: without padding, and a last window that the picture fills in part.
        maps = torch.nn.functional.max_pool2d(maps, 3, 2, ceil_mode=True)
        for block in self._stages:
            maps = block(maps)
        return maps

    def propose(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of maps [b, C, h, w] what the region proposal network says of each anchor: [b, 12 or 24, h, w] logits,
        [b, 48, h, w] deltas, float32."""
        hidden = self._rpn(maps).relu_()
        return self._objectness(hidden).float(), self._moves(hidden).float()

    def features(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled regions [n, C, 14, 14] to features [n, F] float32: the last stage, and the mean of its places."""
        for block in self._last:
            pooled = block(pooled)
        return pooled.mean(dim=(2, 3), dtype=torch.float32)

    @property
    def feature_size(self) -> int:
        """F, the size of a region's feature."""
        return self._linear["cls_score.weight"].shape[1]

    @property
    def regions_at_once(self) -> int:
        """How many regions go through `features` together."""
        return _GPU_REGIONS if self.device.type == "cuda" else _CPU_REGIONS

    def heads(self, features: torch.Tensor) -> Heads:
        """Features [n, F] to what they say of classes, boxes and attributes."""
        classes = self._apply("cls_score", features)
        # The class that seems best, or the background, goes into the attributes.
        words = self._linear[f"{self._words}.weight"][classes.argmax(dim=1)]
        hidden = self._apply(self._attribute, torch.cat([features, words], dim=1)).relu_()
        return Heads(features, classes, self._apply("bbox_pred", features), self._apply(self._attribute_score, hidden))

    def _apply(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(inputs, self._linear[f"{name}.weight"], self._linear[f"{name}.bias"])
