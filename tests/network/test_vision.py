from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from autoprune.errors import ModelError, UnknownNameError
from autoprune.network import vision

TINY_TIMM = ["test_byobnet", "test_convnext", "test_efficientnet", "test_mambaout", "test_maxvit",
             "test_nfnet", "test_resnet", "test_vit", "test_vit4"]  # fmt: skip


@pytest.fixture
def torchvision():
    vision.torchvision_names()  # declares what torchvision needs before its first import
    import torchvision

    return torchvision


def test_a_fresh_interpreter_imports_torchvision_only_when_asked_and_then_succeeds():
    code = """
import sys
from autoprune.network import source, vision
print("torchvision" in sys.modules or "timm" in sys.modules)
import torch
print(len(vision.torchvision_names()) >= 80, len(vision.timm_names()) > 1000)
print(hasattr(torch.ops.torchvision, "nms"))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["False", "True", "True", "True"], done.stderr


def test_operators_that_exist_are_not_declared_again(torchvision):
    assert vision._declare_missing() == []


@pytest.mark.slow
def test_every_torchvision_model_builds_with_its_published_size(torchvision, monkeypatch):
    block_params = torchvision.models.regnet.BlockParams
    original = block_params.from_init_params.__func__

    def on_cpu(cls, *args, **kwargs):  # RegNet computes its widths with tensors that hold values
        with torch.device("cpu"):
            return original(cls, *args, **kwargs)

    monkeypatch.setattr(block_params, "from_init_params", classmethod(on_cpu))
    # googlenet's published count leaves the auxiliary heads out; vit_h_14's is for 518 pixels.
    differing = set()
    for name in vision.torchvision_names():
        auxiliary = {"aux_loss": True} if name.startswith(("fcn_", "deeplabv3_")) else {}
        with torch.device("meta"):
            model = vision.build_torchvision(name, **auxiliary)
        count = sum(parameter.numel() for parameter in model.parameters())
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        # Detectors were trained with the normalisation of their backbone frozen into buffers.
        frozen = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
        published = next(iter(torchvision.models.get_model_weights(name))).meta["num_params"]
        if count not in (published, published + ("fpn" in name) * frozen):
            differing.add(name)
    assert differing == {"googlenet", "vit_h_14"}


def test_every_family_is_offered_but_the_quantised_copies(torchvision):
    names = vision.torchvision_names()
    families = {"resnet18", "fcn_resnet50", "fasterrcnn_resnet50_fpn", "swin3d_t", "raft_small"}
    assert families <= set(names)
    everything = set(torchvision.models.list_models())
    assert everything - set(names) == {name for name in everything if name.startswith("quantized")}


def test_a_detector_is_built_without_its_trained_backbone(torchvision, monkeypatch):
    def fetched(*args, **kwargs):
        raise AssertionError("a download was tried")

    api = sys.modules["torchvision.models._api"]
    monkeypatch.setattr(api, "load_state_dict_from_url", fetched)
    with pytest.raises(AssertionError, match="a download was tried"):
        torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None)
    model = vision.build_torchvision("ssdlite320_mobilenet_v3_large", num_classes=3)
    assert model.head.classification_head.num_columns == 3


@pytest.mark.parametrize("name", TINY_TIMM)
def test_timm_families_build_and_run(name):
    model = vision.build_timm(name, num_classes=7).eval()
    size = model.default_cfg["input_size"]
    with torch.no_grad():
        assert model(torch.zeros(1, *size)).shape == (1, 7)


def test_arguments_reach_the_package():
    assert vision.build_torchvision("squeezenet1_1", num_classes=3).classifier[1].out_channels == 3


@pytest.mark.parametrize("build", [vision.build_torchvision, vision.build_timm])
def test_unknown_names_offer_the_nearest(build):
    with pytest.raises(UnknownNameError, match="did you mean 'resnet"):
        build("resnett18")


@pytest.mark.parametrize("build", [vision.build_torchvision, vision.build_timm])
def test_arguments_the_package_refuses_are_a_model_error(build):
    with pytest.raises(ModelError, match=r"cannot build resnet18 with.*colour"):
        build("resnet18", colour="red")


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (vision.build_torchvision, "weights"),
        (vision.build_torchvision, "weights_backbone"),
        (vision.build_timm, "pretrained"),
        (vision.build_timm, "pretrained_cfg"),
        (vision.build_timm, "checkpoint_path"),
    ],
)
def test_nothing_is_ever_fetched(build, argument):
    with pytest.raises(ModelError, match=f"takes no {argument}: nothing is downloaded"):
        build("resnet18", **{argument: "DEFAULT"})


def test_a_missing_package_is_told_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError, match=r'torchvision is not installed.*autoprune\[vision\]"'):
        vision.build_torchvision("resnet18")
    monkeypatch.undo()
    vision.torchvision_names()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r'timm is not installed.*autoprune\[vision\]"'):
        vision.build_timm("resnet18")
