"""Package metadata of orbit_kd; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "mcu": ["tflite-micro>=0.dev20261023182759"],  # only dev releases exist; naming one admits them without --pre
    "npu": ["ethos-u-vela>=5"],
    "geo": ["imagecodecs>=2023.7"],  # compressed TIFF (LZW, JPEG, ZSTD) of many bands
    "fpga": ["onnx>=1.17", "onnxruntime>=1.20", "tf2onnx>=1.16", "hls4ml>=1.1", "da4ml>=0.4"],
    "signing": [
        "cryptography>=42",
        "model-signing>=1.1",
        "pyopenssl>=24",
    ],  # model-signing needs it and does not say so
    "uplink": [
        "zstandard>=0.22",
        "brotli>=1.2",
        "bsdiff4>=1.2",
        "detools>=0.50",
        "constriction>=0.4",
        "spacepackets>=0.24",
    ],
}
DEV = ["import-linter>=2", "pytest>=8", "pytest-xdist>=3", "hypothesis>=6", "ruff>=0.15", "mypy>=1.15", "dill>=0.3"]

setup(
    name="orbit-kd",
    version="0.1.0",
    description="Makes a trained Keras CNN fit a satellite payload, a microcontroller or an FPGA, and proves that it "
    "still works: filter removal, sparsity, distillation, int8, TFLite.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=[*find_packages(include=["orbit_kd", "orbit_kd.*"]), "orbit_kd_tools"],
    package_dir={"orbit_kd_tools": "tools"},
    package_data={
        "orbit_kd": [
            "py.typed",
            "reports/*.html",
            "reports/*.css",
            "exporters/c99/kernels/*",
            "exporters/c99/cores/**/*",
            "flight/scrubber/*",
        ]
    },
    entry_points={"console_scripts": ["orbit-kd = orbit_kd_tools.__main__:main"]},
    install_requires=[
        "tensorflow>=2.19",
        "tf_keras>=2.19",
        "tensorflow-model-optimization>=0.8",
        "tensorflow-datasets>=4.9.8",
        "importlib_resources>=6",  # tensorflow-datasets needs it and does not say so
        "numpy>=1.26",
        "absl-py>=1.4",
        "ai-edge-litert>=2.0",
        "matplotlib>=3.8",
        "pillow>=10",
        "tifffile>=2023.7",  # TIFF of many bands and deep ones, which Pillow does not read
        "jinja2>=3.1",
        "pycocotools>=2.0.8",
        "tqdm>=4.60",
    ],
    extras_require={**EXTRAS, "all": [p for extra in EXTRAS.values() for p in extra], "dev": DEV},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
