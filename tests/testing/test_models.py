"""The conformance suite, run over one small network of every kind."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.network.source import ModelSource
from autoprune.testing.architectures import DiffusionUNet, RecurrentClassifier, UNet
from autoprune.testing.models import ModelConformance

needs_vision = pytest.mark.skipif(
    not (find_spec("torchvision") and find_spec("timm")), reason="torchvision and timm are missing"
)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class Convolutions(nn.Module):
    """A residual network with a grouped and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.blocks(torch.relu(self.stem(x)))
        x = self.depthwise(torch.relu(self.grouped(x)))
        return self.head(x.mean((2, 3)))


class TestConvolutions(ModelConformance):
    def make(self):
        return Convolutions(), torch.randn(2, 3, 12, 12)


class TestHalfPrecision(ModelConformance):
    def make(self):
        return Convolutions().bfloat16(), torch.randn(2, 3, 12, 12).bfloat16()


class Attention(nn.Module):
    """Causal self-attention written out with a fused projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, mask):
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, mask):
        x = x + self.attention(self.norm_1(x), mask)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class LanguageModel(nn.Module):
    """Token numbers in, scores of the next token out, through the embedding's own weight."""

    def __init__(self, words: int = 23, width: int = 16):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(8, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        count = tokens.shape[1]
        x = self.tokens(tokens) + self.positions(torch.arange(count, device=tokens.device))
        mask = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.norm(x))


class TestTiedEmbeddings(ModelConformance):
    def make(self):
        return LanguageModel(), torch.randint(23, (2, 6))


@dataclasses.dataclass
class Found:
    """What the detector returns."""

    scores: Tensor
    boxes: Tensor | None = None


torch.export.register_dataclass(Found, serialized_type_name="Found")


class Detector(nn.Module):
    """Takes a dict of images and sizes, and a flag; returns a dataclass."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.neck = nn.Conv2d(8, 12, 1)
        self.scores, self.boxes = nn.Conv2d(12, 5, 1), nn.Conv2d(12, 4, 1)

    def forward(self, batch, *, with_boxes: bool = False):
        x = F.relu(self.neck(F.silu(self.norm(self.stem(batch["images"])))))
        scores = self.scores(x)
        if not with_boxes:
            return Found(scores)
        return Found(scores, self.boxes(x) * batch["sizes"][:, None, None, None])


class TestNestedInputs(ModelConformance):
    def make(self):
        batch = {"images": torch.randn(2, 3, 8, 8), "sizes": torch.tensor([0.5, 2.0])}
        return Detector(), {"batch": batch, "with_boxes": True}


class Positions(nn.Module):
    """Attention by position alone; makes its table in the first pass, as wide as its input asks."""

    def __init__(self, width: int):
        super().__init__()
        self.value, self.project = nn.Linear(width, width), nn.Linear(3, 1)
        self.table = torch.zeros(1, 1, 3)
        self.register_buffer("scale", torch.rand(width), persistent=False)

    def forward(self, x):
        if self.table.shape[0] != x.shape[1]:
            steps = torch.arange(x.shape[1])
            table = torch.zeros(x.shape[1], x.shape[1], 3)
            table[:, :, 0] = steps[None] - steps[:, None]
            table[:, :, 2] = (steps[None] - steps[:, None]) ** 2
            self.table = table
        if not hasattr(self, "ones"):
            self.register_buffer("ones", torch.ones(x.shape[1]), persistent=False)
            self.register_buffer("bias", torch.zeros(x.shape[1]))
        weights = self.project(self.table).squeeze(-1).softmax(-1) + self.bias * self.ones
        return x + weights @ (self.value(x) * self.scale)


class TestWhatIsMadeInTheFirstPass(ModelConformance):
    def make(self):
        model = nn.Sequential(nn.Linear(4, 12), Positions(12), Positions(12), nn.Linear(12, 3))
        return model, torch.randn(2, 5, 4)


class TestLSTM(ModelConformance):
    def make(self):
        return RecurrentClassifier(nn.LSTM, layers=1), torch.randint(50, (2, 5))


class TestGRU(ModelConformance):
    def make(self):
        return RecurrentClassifier(nn.GRU, layers=1), torch.randint(50, (2, 5))


@pytest.mark.slow
class TestUNet(ModelConformance):
    def make(self):
        return UNet(), torch.randn(2, 3, 16, 16)


@pytest.mark.slow
class TestDiffusionUNet(ModelConformance):
    def make(self):
        return DiffusionUNet(), (torch.randn(2, 3, 16, 16), torch.tensor([3, 70]))


class Named(ModelConformance):
    """A network of torchvision or timm, by name."""

    spec = ""
    size = 32

    def make(self):
        return ModelSource.parse(self.spec).build(), torch.randn(2, 3, self.size, self.size)


@needs_vision
@pytest.mark.slow
class TestResNet18(Named):
    spec = "torchvision:resnet18(num_classes=10)"


@needs_vision
@pytest.mark.slow
class TestMobileNetV3(Named):
    spec = "torchvision:mobilenet_v3_small(num_classes=10)"


@needs_vision
@pytest.mark.slow
class TestShuffleNet(Named):
    spec = "torchvision:shufflenet_v2_x0_5(num_classes=10)"


@needs_vision
@pytest.mark.slow
class TestDenseNet(Named):
    spec = "timm:densenet121(growth_rate=8, block_config=(2, 3, 2), num_classes=10)"


@needs_vision
@pytest.mark.slow
class TestVisionTransformer(Named):
    spec = "timm:vit_tiny_patch16_224(img_size=32, patch_size=8, depth=2, num_classes=10)"


@needs_vision
@pytest.mark.slow
class TestSwin(Named):
    spec = (
        "timm:swin_tiny_patch4_window7_224(img_size=32, window_size=4, depths=(2, 2), "
        "num_heads=(2, 4), embed_dim=16, num_classes=10)"
    )


@needs_vision
@pytest.mark.slow
class TestConvNeXt(Named):
    spec = "timm:convnext_atto(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40), num_classes=10)"


@needs_vision
@pytest.mark.slow
class TestConViT(Named):
    spec = "timm:convit_tiny(img_size=32, patch_size=8, depth=3, embed_dim=32, num_classes=10)"


@needs_vision
@pytest.mark.slow
class TestLeViT(Named):
    spec = "timm:levit_128s(num_classes=10)"
    size = 224
