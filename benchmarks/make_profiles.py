"""Calibrates the shipped device profiles again, all or those named, from published measurements.

``AUTOPRUNE_SHARED=... python benchmarks/make_profiles.py [NAME ...]`` reads the shared folder's
tables, brings them into the neutral form of docs/formats.md (under --work, kept between runs),
fits, and writes hardware_profiles/NAME.yaml. Networks that a table only names are built from their
public definitions with random weights or none and traced. A profile whose held-out error is above
30 % is not written, and said so; one that is there already is kept unless the new one is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import make_jetson_layers
import pandas as pd
import shared_tables
import torch

from autoprune.cli.devices import markdown
from autoprune.latency.calibrate import Target, calibrate
from autoprune.latency.layers import rows_from_ops
from autoprune.latency.measurements import Names, Selected, Selection, read_tables, select
from autoprune.latency.profile import (
    DeviceProfile,
    load_profile,
    profile_names,
    save_profile,
)
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace

#: A profile with a larger held-out error (mean, relative) is not shipped.
MOST_ERROR = 0.30
#: Characters of one profile's trees that are committed, at most.
MOST_TEXT = 300_000

PROFILES = Path(__file__).resolve().parents[1] / "hardware_profiles"
PAGE = PROFILES.parent / "docs" / "devices.md"
#: Marks around the table in the page.
_BEGIN, _END = "<!-- autoprune devices --markdown -->", "<!-- end -->"

Layers: TypeAlias = Mapping[str, list[list[Any]]]


@dataclasses.dataclass(frozen=True)
class Spec:
    """How one profile is made.

    Attributes:
        title: The device in words.
        source: Name of the function in :data:`SOURCES` that gives its table and layer lists.
        devices: Names of the device in the table.
        runtime: Runtime of the profile.
        runtimes: Names of the runtime in the table with the fusion rules of its rows.
        precision: Of the profile; the tables call it so too.
        batch: Images per forward pass.
        alignment: Channels are padded to a multiple of this; ``None`` finds it from kernels.
        overlap: Whether computing and moving data overlap in a kernel.
        kind: Predictor.
        capabilities: What else the device can do.
        aliases: Other names.
        note: What a reader of the profile should know.
        processors: Multiprocessors of a GPU, for kind ``learned``.
    """

    title: str
    source: str
    devices: tuple[str, ...]
    runtime: str
    runtimes: Mapping[str, str]
    precision: str
    batch: int = 1
    alignment: int | None = 1
    overlap: str = "none"
    kind: str = "roofline"
    capabilities: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    note: str = ""
    processors: int = 1


# --- what the tables hold -----------------------------------------------------------------------

#: Networks of the TX2's table of 2018, as torchvision, timm and the shared lists define them.
_TX2_NETWORKS = {
    "inception_v1": "googlenet",
    "resnet_v1_50": "resnet50",
    "resnet_v1_101": "resnet101",
    "resnet_v1_152": "resnet152",
    "vgg_16": "vgg16",
}
#: Built here for that table: name in the table, source, image size.
_TX2_BUILT = (
    ("googlenet", "torchvision:googlenet(aux_logits=False)", 224),
    ("inception_v3", "torchvision:inception_v3(aux_logits=False)", 299),
    ("inception_v4", "timm:inception_v4", 299),
    ("inception_resnet_v2", "timm:inception_resnet_v2", 299),
    ("resnet_v2_50", "timm:resnetv2_50", 299),
    ("resnet_v2_101", "timm:resnetv2_101", 299),
    ("resnet_v2_152", "timm:resnetv2_152", 299),
)

_TIMM = """
    resnet18 resnet34 resnet50 resnet101 resnet152 resnet26d resnet50d resnext50_32x4d
    resnext101_32x8d wide_resnet50_2 seresnet50 seresnext50_32x4d ecaresnet50t resnetv2_50
    resnetv2_101x1_bit regnetx_004 regnetx_032 regnetx_080 regnety_004 regnety_016 regnety_032
    regnety_120 mobilenetv2_050 mobilenetv2_100 mobilenetv2_140 mobilenetv3_small_050
    mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small mobilenetv4_conv_medium
    mobilenetv4_conv_large mobilenetv4_hybrid_medium mobilenetv1_100 mobilenetv1_125
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4
    efficientnetv2_rw_s tf_efficientnetv2_b0 tf_efficientnetv2_s tf_efficientnet_lite0
    tf_efficientnet_lite4 mixnet_s mixnet_l mnasnet_100 mnasnet_small semnasnet_100 fbnetc_100
    fbnetv3_b spnasnet_100 lcnet_050 lcnet_100 tinynet_a tinynet_e ghostnet_050 ghostnet_100
    ghostnetv2_100 hardcorenas_a rexnet_100 rexnet_200 densenet121 densenet169 densenet201 vgg11
    vgg16 vgg16_bn vgg19 inception_v3 inception_v4 inception_resnet_v2 xception41 xception65
    dpn68 dla34 dla60 dla102 hrnet_w18 hrnet_w18_small res2net50_26w_4s cspresnet50 cspdarknet53
    cspresnext50 darknet53 selecsls42b selecsls60 vovnet39a ese_vovnet19b_dw ese_vovnet39b
    repvgg_a2 repvgg_b0 repvgg_b1 convnext_atto convnext_nano convnext_tiny convnext_small
    convnext_base convnextv2_atto convnextv2_tiny vit_tiny_patch16_224 vit_small_patch16_224
    vit_small_patch32_224 vit_base_patch16_224 vit_base_patch32_224 vit_large_patch16_224
    deit_tiny_patch16_224 deit_small_patch16_224 deit3_small_patch16_224 beit_base_patch16_224
    swin_tiny_patch4_window7_224 swin_small_patch4_window7_224 swin_base_patch4_window7_224
    pvt_v2_b0 pvt_v2_b2 twins_svt_small twins_pcpvt_small pit_ti_224 pit_s_224 poolformer_s12
    poolformer_s24 mixer_b16_224 gmlp_s16_224 resmlp_12_224 cait_xxs24_224 xcit_nano_12_p16_224
    coat_tiny convit_tiny levit_128 levit_256 mobilevit_xs mobilevit_s mobilevitv2_100
    edgenext_small edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    efficientformerv2_s1 fastvit_t8 fastvit_sa12 mobileone_s0 mobileone_s1 nfnet_l0 dm_nfnet_f0
    eca_nfnet_l0 tresnet_m gernet_m gernet_s skresnet34 coatnet_nano_rw_224 maxvit_tiny_tf_224
    focalnet_tiny_srf crossvit_9_240 visformer_tiny nest_tiny tnt_s_legacy_patch16_224 repvit_m1
    inception_next_tiny hgnet_tiny hgnetv2_b0 starnet_s1 efficientvit_b0 efficientvit_b1
    efficientvit_m0 mambaout_tiny hiera_tiny_224 davit_tiny bat_resnext26ts lambda_resnet26t
    botnet26t_256 halonet26t cs3darknet_m resnest50d nf_resnet50 legacy_senet154 pnasnet5large
    nasnetalarge senet154
"""


def jetson(work: Path) -> tuple[pd.DataFrame, Layers, Names]:
    """Return whole networks on Jetson boards and Raspberry Pis, traced from their definitions."""
    layers = _cached(work / "jetson.json", _jetson_layers)
    shared = json.loads((shared_tables.folder() / "net_jetson_small_layers.json").read_text())
    layers |= {name: rows for name, rows in shared.items() if name.startswith("mobilenet_v1")}
    sources = make_jetson_layers.NAMES["sources"]
    names = Names(
        make_jetson_layers.NAMES["networks"] | _TX2_NETWORKS,
        {repository: source["commit"] for repository, source in sources.items()},
        {repository: source["licence"] for repository, source in sources.items()},
    )
    return pd.read_csv(shared_tables.folder() / "net_jetson_small.csv"), layers, names


def ncnn(work: Path) -> tuple[pd.DataFrame, Layers, Names]:
    """Return the community runs of ncnn's own benchmark on CPUs; the device names the threads.

    Its fastest loop stands for a run: the mean holds the pauses of a phone that gets hot.
    """
    del work
    frame = pd.read_csv(shared_tables.folder() / "net_ncnn.csv")
    frame = frame[(frame["gpu_device"] < 0) & (frame["min_ms"] > 0)]
    device = [
        f"{row.device_heading} | {row.threads} threads, powersave {row.powersave}"
        for row in frame.itertuples()
    ]
    content = json.loads((shared_tables.folder() / "net_ncnn_layers.json").read_text())
    table = pd.DataFrame(
        {
            "device": device,
            "runtime": "ncnn",
            "precision": "any",
            "batch": 1,
            "network": frame["model"],
            "latency_ms": frame["min_ms"],
            "repo": "Tencent/ncnn",
            "path": "benchmark/README.md",
            "commit": "a4d2ea1d",
            "licence": "BSD-3-Clause",
        }
    )
    whole = ~table["network"].str.endswith("_int8")
    # A heading may hold several runs under the same conditions; the last one is the newest.
    table = table[whole].drop_duplicates(["device", "network"], keep="last")
    return table, {name: _padded(entry["layers"]) for name, entry in content.items()}, Names()


def _padded(rows: list[list[Any]]) -> list[list[Any]]:
    """Return a layer list with the paddings of a pixel that BlazeFace's list leaves out."""
    full: list[list[Any]] = []
    sizes = {tuple(rows[0][6:8])}
    for row in rows:
        h, w = row[6:8]
        if (h, w) not in sizes and (h - 2, w - 2) in sizes:
            full.append(["copy", row[1], row[1], 1, 1, 1, h - 2, w - 2, h, w])
        full.append(row)
        sizes |= {tuple(row[8:10]), (h, w), (1, 1)}
    return full


def timm(work: Path) -> tuple[pd.DataFrame, Layers, Names]:
    """Return timm's own measurements of models of many families, traced without weights."""
    found = _cached(work / "timm.json", _timm_layers)
    frame = pd.read_parquet(shared_tables.folder() / "net_timm_infer.parquet")
    network = frame["model"].str.split(".").str[0]
    sizes = {name: rows[0][6] for name, rows in found.items()}
    native = frame["img_size"] == network.map(lambda name: sizes.get(name, -1))
    table = frame[native].assign(
        network=network[native],
        batch=frame["batch"].astype(int),
        precision=frame["precision"].replace("amp", "fp16"),
        repo="huggingface/pytorch-image-models",
        path="results/" + frame["file"],
        commit="aa4b5850",
        licence="Apache-2.0",
    )
    table = table.drop(columns=["model", "file"]).drop_duplicates(["device", "runtime", "network"])
    return table, found, Names()


def nb201(column: str) -> Callable[[Path], tuple[pd.DataFrame, Layers, Names]]:
    """Return the source of NAS-Bench-201 networks on one device."""

    def source(work: Path) -> tuple[pd.DataFrame, Layers, Names]:
        del work
        table, layers = shared_tables.nb201(column)
        few = table.sample(n=_NB201_NETWORKS, random_state=0)
        return few, layers, Names()

    return source


#: Networks of NAS-Bench-201 that a profile is fitted on; more add nothing.
_NB201_NETWORKS = 600


def kernels(name: str) -> Callable[[Path], tuple[pd.DataFrame, Layers, Names]]:
    """Return the source of one of the tables of single kernels."""

    def source(work: Path) -> tuple[pd.DataFrame, Layers, Names]:
        del work
        frame: pd.DataFrame = getattr(shared_tables, name)()
        return frame, {}, Names()

    return source


def xeon(work: Path) -> tuple[pd.DataFrame, Layers, Names]:
    """Return inverted-residual blocks on one thread of a Xeon."""
    del work
    table, layers = shared_tables.xeon_blocks()
    return table, layers, Names()


SOURCES: dict[str, Callable[[Path], tuple[pd.DataFrame, Layers, Names]]] = {
    "jetson": jetson,
    "ncnn": ncnn,
    "timm": timm,
    "nb201_raspi4": nb201("raspi4"),
    "nb201_pixel3": nb201("pixel3"),
    "v100": kernels("v100"),
    "neusight": kernels("neusight"),
    "gemm": kernels("gemm"),
    "xeon": xeon,
}


def _cached(path: Path, make: Callable[[], Layers]) -> dict[str, list[list[Any]]]:
    """Return the layer lists of a file, made first where it is missing."""
    if not path.is_file():
        path.write_text(json.dumps(make()))
    content: dict[str, list[list[Any]]] = json.loads(path.read_text())
    return content


def _jetson_layers() -> Layers:
    built = {name: _traced(source, size) for name, source, size in _TX2_BUILT}
    return make_jetson_layers.layer_lists() | built


def _timm_layers() -> Layers:
    layers = {}
    for name in _TIMM.split():
        started = time.perf_counter()
        layers[name] = _traced(f"timm:{name}")
        print(f"traced {name} in {time.perf_counter() - started:.1f} s", flush=True)
    return layers


def _traced(source: str, size: int | None = None) -> list[list[Any]]:
    """Return the layer list of a model, traced without weights on one image."""
    model, _ = ModelSource.parse(source).build_with_notes(fake=True)
    size = size or model.default_cfg["input_size"][-1]
    return rows_from_ops(trace(model, (torch.zeros(1, 3, size, size),)).ops)


# --- the profiles -------------------------------------------------------------------------------

_TENSOR_CORES = ("tensor_cores", "int8")
_SPARSE = ("tensor_cores", "int8", "sparsity_2_4")


def _jetsons() -> Iterator[tuple[str, Spec]]:
    rows: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("jetson_nano", "NVIDIA Jetson Nano", {"alignment": 2, "aliases": ("jetson",)}),
        (
            "jetson_tx2",
            "NVIDIA Jetson TX2",
            {
                "alignment": 2,
                "runtimes": {"tensorrt_JetPack4.6": "tensorrt"},
                "note": "The rows of 2018 are not used: that TensorRT no longer describes the "
                "board.",
            },
        ),
        (
            "jetson_nx",
            "NVIDIA Jetson Xavier NX",
            {"capabilities": _TENSOR_CORES, "aliases": ("jetson_xavier_nx",)},
        ),
        (
            "jetson_agx_xavier",
            "NVIDIA Jetson AGX Xavier",
            {
                "capabilities": _TENSOR_CORES,
                "aliases": ("jetson_xavier",),
                "devices": ("jetson_agx_xavier", "jetson_xavier"),
                "runtimes": {"tensorrt": "tensorrt_early", "tensorrt_JetPack4.6": "tensorrt"},
                "note": "The rows of 2019 show DenseNets whose shared features are copied into "
                "every\nconcatenation (rules tensorrt_early); the profile predicts today's "
                "TensorRT, without.",
            },
        ),
        ("jetson_orin_nano", "NVIDIA Jetson Orin Nano", {"capabilities": _SPARSE}),
        ("jetson_agx_orin", "NVIDIA Jetson AGX Orin", {"capabilities": _SPARSE}),
    )
    names = ("tensorrt", "tensorrt_JetPack4.6", "tensorrt_JetPack5.0.1", "tensorrt_JetPack6.0")
    common = Spec("", "jetson", (), "tensorrt", dict.fromkeys(names, "tensorrt"), "fp16")
    for name, title, other in rows:
        changes = {"title": title, "devices": (name,), "alignment": 8} | other
        yield name, dataclasses.replace(common, **changes)
    yield (
        "jetson_tx2_fp32",
        dataclasses.replace(
            common,
            title="NVIDIA Jetson TX2",
            devices=("jetson_tx2",),
            runtimes={"tensorrt": "tensorrt"},
            precision="fp32",
            note="Rows of 2018, TensorRT on converted TensorFlow networks; ResNets v1 are taken to "
            "be\ntorchvision's, which put a stride elsewhere.",
        ),
    )


def _raspberry_pis() -> Iterator[tuple[str, Spec]]:
    boards = (
        ("raspberry_pi_3b_plus", "raspberry_pi_3b_plus", "Raspberry Pi 3B+"),
        ("raspberry_pi_4", "raspberry_pi_4b", "Raspberry Pi 4B"),
        ("raspberry_pi_5", "raspberry_pi_5", "Raspberry Pi 5"),
        ("raspberry_pi_zero_2_w", "raspberry_pi_zero_2_w", "Raspberry Pi Zero 2 W"),
    )
    for name, device, title in boards:
        for precision in ("fp16", "int8"):
            yield (
                f"{name}_tflite_{precision}",
                Spec(
                    title,
                    "jetson",
                    (device,),
                    "tflite",
                    {"tflite": "tflite"},
                    precision,
                    alignment=4,
                    note="fp16 is how the weights are stored." if precision == "fp16" else "",
                ),
            )


#: Name, title, start of the heading in ncnn's table, threads, powersave, precision. Threads are
#: those of all big cores; ncnn computes in half precision where the CPU does (Armv8.2).
_NCNN = (
    ("raspberry_pi_zero_2_w", "Raspberry Pi Zero 2 W", "Raspberry Pi Zero 2 W", 4, 0, "fp32"),
    ("raspberry_pi_3b_plus", "Raspberry Pi 3B+", "Raspberry Pi 3 Model B+", 4, 0, "fp32"),
    ("raspberry_pi_4", "Raspberry Pi 4B", "Raspberry Pi 4 Model B", 4, 0, "fp32"),
    ("raspberry_pi_5", "Raspberry Pi 5", "Raspberry Pi 5 Broadcom BCM2712, ", 4, 0, "fp16"),
    ("jetson_nano", "NVIDIA Jetson Nano, its CPU", "NVIDIA Jetson Nano", 4, 0, "fp32"),
    ("jetson_tx2_nx", "NVIDIA Jetson TX2 NX, its CPU", "NVIDIA Jetson TX2 NX", 6, 0, "fp32"),
    ("jetson_agx_xavier", "NVIDIA Jetson AGX Xavier, its CPU", "NVIDIA Jetson AGX Xavier", 8, 0,
     "fp16"),
    ("jetson_orin_nano", "NVIDIA Jetson Orin Nano, its CPU", "NVIDIA Jetson Orin Nano", 6, 0,
     "fp16"),
    ("jetson_agx_orin", "NVIDIA Jetson AGX Orin, its CPU", "NVIDIA Jetson AGX Orin", 12, 0, "fp16"),
    ("rk3588", "Rockchip RK3588, 4x Cortex-A76", "Rockchip RK3588 (Quad", 4, 2, "fp16"),
    ("rk3399", "Rockchip RK3399, 2x Cortex-A72", "Rockchip RK3399 (Cortex", 2, 2, "fp32"),
    ("rk3568", "Rockchip RK3568 (Rock 3A)", "Rock3A", 4, 0, "fp16"),
    ("rk3566", "Rockchip RK3566 (Orange Pi CM4)", "OrangePicm4", 4, 0, "fp16"),
    ("rk3328", "Rockchip RK3328 (NanoPi R2S)", "NanoPi R2S", 4, 0, "fp32"),
    ("rk3288", "Rockchip RK3288", "Rockchip RK3288", 4, 0, "fp32"),
    ("khadas_vim3", "Khadas VIM3, 4x Cortex-A73", "Khadas VIM3", 4, 2, "fp32"),
    ("amlogic_s805", "Amlogic S805", "Amlogic S805", 4, 2, "fp32"),
    ("orange_pi_zero_2", "Orange Pi Zero 2 (Allwinner H616)", "OrangePi Zero 2", 4, 0, "fp32"),
    ("allwinner_t527", "Allwinner T527, 4x Cortex-A55", "Avaota Aim T527", 4, 2, "fp16"),
    ("rdk_x3", "RDK X3 module", "RDK X3 Module", 4, 0, "fp32"),
    ("radxa_zero_3w", "Radxa Zero 3W", "Radxa Zero 3W", 4, 0, "fp16"),
    ("arduino_uno_q", "Arduino UNO Q", "Arduino UNO Q", 4, 0, "fp32"),
    ("banana_pi_m2_zero", "Banana Pi M2 Zero", "Banana Pi M2 Zero", 4, 0, "fp32"),
    ("axera_ax620a", "AXERA AX620A, its CPU", "AXERA AX620A", 4, 0, "fp32"),
    ("renesas_rzg2l", "Renesas RZ/G2L (RemiPi)", "MYIR RemiPi", 4, 0, "fp16"),
    ("visionfive_2", "VisionFive 2 (RISC-V JH7110)", "VisionFive2", 4, 0, "fp32"),
    ("spacemit_m1", "SpacemiT M1 (RISC-V)", "Spacemit MUSE Pi Pro", 8, 2, "fp16"),
    ("th1520", "T-Head TH1520 (RISC-V)", "T-Head TH1520", 4, 0, "fp32"),
    ("cvitek_sg2000", "CVITEK SG2000 (RISC-V), one core", "CVITEK SG2000", 1, 2, "fp32"),
    ("snapdragon_410", "Qualcomm Snapdragon 410", "Qualcomm MSM8916", 4, 0, "fp32"),
    ("snapdragon_660", "Qualcomm Snapdragon 660", "Qualcomm SDM660", 8, 0, "fp32"),
    ("snapdragon_765g", "Qualcomm Snapdragon 765G", "Qualcomm SDM765G", 4, 2, "fp16"),
    ("snapdragon_810", "Qualcomm Snapdragon 810", "Qualcomm MSM8994", 4, 2, "fp32"),
    ("snapdragon_821", "Qualcomm Snapdragon 821", "Qualcomm MSM8996", 4, 0, "fp32"),
    ("snapdragon_835", "Qualcomm Snapdragon 835", "Qualcomm MSM8998", 4, 2, "fp32"),
    ("snapdragon_855_plus", "Qualcomm Snapdragon 855+", "Qualcomm SM8150-AC", 4, 2, "fp16"),
    ("snapdragon_888", "Qualcomm Snapdragon 888", "Qualcomm Snapdragon 888", 8, 2, "fp16"),
    ("snapdragon_8_gen_2", "Qualcomm Snapdragon 8 Gen 2", "Qualcomm SM8550-AB", 4, 2, "fp16"),
    ("kirin_970", "HiSilicon Kirin 970, 4x Cortex-A73", "Kirin 970", 4, 2, "fp32"),
    ("dimensity_9300", "MediaTek Dimensity 9300", "MediaTek Dimensity 9300", 4, 2, "fp16"),
)  # fmt: skip


def _ncnn() -> Iterator[tuple[str, Spec]]:
    for name, title, heading, threads, powersave, precision in _NCNN:
        yield (
            f"{name}_ncnn",
            Spec(
                title,
                "ncnn",
                (f"{heading}* | {threads} threads, powersave {powersave}",),
                "ncnn",
                {"ncnn": "ncnn"},
                precision,
                alignment=4,
                note=f"A community run of ncnn's benchmark, {threads} threads, powersave "
                f"{powersave}; its fastest loop.",
            ),
        )


def _others() -> Iterator[tuple[str, Spec]]:
    simple = Spec("", "", (), "tflite", {"tflite": "tflite"}, "fp32")
    pi = dataclasses.replace(
        simple, title="Raspberry Pi 4B", source="nb201_raspi4", devices=("raspi4",)
    )
    pixel = dataclasses.replace(
        simple, title="Google Pixel 3", source="nb201_pixel3", devices=("pixel3",)
    )
    note = "Small networks on 32 x 32 pixels; what is larger is extrapolated."
    yield "raspberry_pi_4_tflite_fp32", dataclasses.replace(pi, note=note)
    yield "pixel_3_tflite_fp32", dataclasses.replace(pixel, note=note)
    eager = {"pytorch1.1": "eager"}
    yield (
        "xeon_6130_eager_fp32",
        Spec(
            "Intel Xeon Gold 6130, one thread",
            "xeon",
            ("xeon_gold_6130_1thread",),
            "eager",
            eager,
            "fp32",
            kind="learned",
            note="Inverted-residual blocks, not whole networks.",
        ),
    )
    for precision, capabilities in (("fp32", ()), ("fp16", _TENSOR_CORES), ("int8", _TENSOR_CORES)):
        yield (
            f"v100_tensorrt_{precision}",
            Spec(
                "NVIDIA V100",
                "v100",
                ("v100",),
                "tensorrt",
                {"tensorrt": "tensorrt"},
                precision,
                alignment=None,
                kind="learned",
                capabilities=capabilities,
                processors=80,
            ),
        )


def _pytorch_gpus() -> Iterator[tuple[str, Spec]]:
    both = "3x3 convolutions that step by one, and linears."
    linears = "Linears alone: for transformers."
    gpus = (
        ("p4", "NVIDIA P4", "p4", both, 20),
        ("p100", "NVIDIA P100 PCIe 16 GB", "p100-pcie-16gb", both, 56),
        ("v100", "NVIDIA V100 PCIe 32 GB", "v100-pcie-32gb", both, 80),
        ("a100", "NVIDIA A100 PCIe 80 GB", "a100_80gb_pcie", both, 108),
        ("l4", "NVIDIA L4", "l4", linears, 58),
        ("h100", "NVIDIA H100 SXM 80 GB", "h100_80gb_hbm3", linears, 132),
    )
    for name, title, device, note, processors in gpus:
        yield (
            f"{name}_eager_fp32",
            Spec(
                title,
                "neusight",
                (device,),
                "eager",
                {"pytorch*": "eager"},
                "fp32",
                alignment=None,
                kind="learned",
                note=note,
                processors=processors,
            ),
        )
    names = (
        ("a100", "NVIDIA A100 SXM", "a100_sxm", 108),
        ("l40s", "NVIDIA L40S", "l40s", 142),
        ("h100", "NVIDIA H100 SXM", "h100_sxm", 132),
        ("h200", "NVIDIA H200 SXM", "h200_sxm", 132),
    )
    for name, title, device, processors in names:
        for precision in ("bf16",) if name == "a100" else ("bf16", "fp8"):
            yield (
                f"{name}_gemm_{precision}",
                Spec(
                    title,
                    "gemm",
                    (device,),
                    "eager",
                    {"*": "eager"},
                    precision,
                    alignment=None,
                    kind="learned",
                    capabilities=_SPARSE,
                    note="Matrix products alone: for transformers.",
                    processors=processors,
                ),
            )


def _timm() -> Iterator[tuple[str, Spec]]:
    gpus = (
        ("rtx_3090", "NVIDIA GeForce RTX 3090", "rtx3090", "pytorch_pt240_cu124_nchw"),
        ("rtx_4090", "NVIDIA GeForce RTX 4090", "4090", "pytorch_pt291_cu128_nchw"),
        ("rtx_5090", "NVIDIA GeForce RTX 5090", "5090", "pytorch_pt291_cu130_nchw"),
    )
    for name, title, device, runtime in gpus:
        ways = (("eager", "eager"), ("inductor", "compile"))
        for word, rules in ways[: 1 if name == "rtx_3090" else 2]:
            yield (
                f"{name}_{rules}_amp",
                Spec(
                    title,
                    "timm",
                    (device,),
                    rules,
                    {f"{runtime}_{word}": rules},
                    "fp16",
                    batch=1024,
                    alignment=8,
                    capabilities=_SPARSE,
                    note="Automatic mixed precision on 1024 images; small batches are launched, "
                    "not computed,\nand nothing of them was measured.",
                ),
            )
    for name, title, device in (
        ("i9_10940x", "Intel Core i9-10940X", "i9_10940x"),
        ("i7_12700h", "Intel Core i7-12700H", "i7_12700h"),
    ):
        yield (
            f"{name}_compile_fp32",
            Spec(
                title,
                "timm",
                (device,),
                "compile",
                {"pytorch_pt240_cpu_nchw_inductor": "compile"},
                "fp32",
                overlap="full",
            ),
        )


SPECS: dict[str, Spec] = {
    name: spec
    for part in (_jetsons, _raspberry_pis, _ncnn, _others, _pytorch_gpus, _timm)
    for name, spec in part()
}


# --- making them --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _tables(source: str, work: Path) -> tuple[Any, Layers, Names, pd.DataFrame]:
    """Return a source's table as autoprune reads it, its layer lists, its names, and its rows."""
    frame, layers, names = SOURCES[source](work)
    path = work / f"{source}.parquet"
    frame.to_parquet(path, index=False)
    return read_tables([path]), layers, names, frame


def _matching(patterns: Any, present: pd.Series) -> tuple[str, ...]:
    """Return the table's words that match ``patterns``; ``*`` stands for any characters."""
    known = sorted(set(present.astype(str)))
    found: list[str] = []
    for pattern in patterns:
        start, star, end = pattern.partition("*")
        found += [
            word
            for word in known
            if (word.startswith(start) and word.endswith(end) if star else word == pattern)
        ]
    return tuple(dict.fromkeys(found))


def make(name: str, work: Path) -> DeviceProfile:
    """Return the profile ``name``, fitted now."""
    selected, target = chosen(name, work)
    return calibrate(selected, target, date=datetime.datetime.now(datetime.UTC).date())


def chosen(name: str, work: Path) -> tuple[Selected, Target]:
    """Return the measurements that the profile ``name`` is fitted on, and what it states."""
    spec = SPECS[name]
    tables, layers, names, frame = _tables(spec.source, work)
    devices = _matching(spec.devices, frame["device"])
    if spec.source == "ncnn":
        devices = devices[-1:]
    mine = frame[frame["device"].isin(devices)]
    runtimes = {
        word: rules
        for pattern, rules in spec.runtimes.items()
        for word in _matching([pattern], mine["runtime"])
    }
    precision = "any" if spec.source == "ncnn" else spec.precision
    selected = select(
        tables, layers, Selection(devices, runtimes, precision, spec.batch), names=names
    )
    target = Target(
        name=name,
        device=spec.title,
        runtime=spec.runtime,
        runtime_version=", ".join(sorted(runtimes) if spec.source != "ncnn" else devices),
        precision=spec.precision,
        batch=spec.batch,
        alignment=spec.alignment,
        overlap="full" if spec.overlap == "full" else "none",
        kind=spec.kind,
        capabilities=spec.capabilities,
        aliases=spec.aliases,
        processors=spec.processors,
    )
    return selected, target


def main() -> int:
    """Make the profiles on the command line; return 1 where one was refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--work", type=Path, default=Path("runs/profiles"))
    parser.add_argument("--output", type=Path, default=PROFILES)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(SPECS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(SPECS)}")
    options.work.mkdir(parents=True, exist_ok=True)
    refused = [
        name
        for name in options.names or SPECS
        if not _made(name, options.work, options.output / f"{name}.yaml")
    ]
    if options.output == PROFILES:
        _write_page()
    return 1 if refused else 0


def _write_page() -> None:
    """Put the table of all shipped profiles into docs/devices.md."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(f"{_BEGIN}\n")
    _, _, tail = rest.partition(_END)
    table = markdown([load_profile(name) for name in profile_names()])
    PAGE.write_text(f"{head}{_BEGIN}\n{table}{_END}{tail}", encoding="utf-8")


def _made(name: str, work: Path, path: Path) -> bool:
    """Write a profile and say how good it is; return whether it is fit to ship.

    One that is there already stays where it is no worse: everything that was predicted with it
    stays as it was.
    """
    started = time.perf_counter()
    profile = make(name, work)
    provenance = profile.provenance
    text = sum(len(part.content()) for part in profile.predictor.attachments)
    said = (
        f"{name}: {profile.predictor.kind}, {provenance.sample_count} {provenance.samples}, "
        f"held-out error {100 * provenance.held_out.mape:.1f} %, {profile.quality}, "
        f"{text // 1000} kB of trees, {time.perf_counter() - started:.0f} s"
    )
    if provenance.held_out.mape > MOST_ERROR:
        print(f"REFUSED {said}: above {100 * MOST_ERROR:.0f} %", flush=True)
        return False
    if text > MOST_TEXT:
        print(f"REFUSED {said}: more than {MOST_TEXT // 1000} kB", flush=True)
        return False
    if path.is_file():
        before = load_profile(path).provenance
        if (before.sample_count, before.held_out.mape) == (
            provenance.sample_count,
            min(before.held_out.mape, provenance.held_out.mape),
        ):
            print(f"KEPT {said}: the one there has {100 * before.held_out.mape:.1f} %", flush=True)
            return True
    command = f"Made by:\n  python benchmarks/make_profiles.py {name}"
    comment = "\n".join(filter(None, [SPECS[name].note, command]))
    save_profile(profile, path, comment=comment)
    print(said, flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
