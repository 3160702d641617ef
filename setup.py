"""Builds the one compiled module, `fastdecode._native`; everything else about the package stands in pyproject.toml.

setuptools gives all files of an extension the same flags, and compiles them one after the other and all again when one
changes. Here a file can have the flags of its instruction set, and the files are compiled side by side. The compiler writes beside
each object what it read (-MMD), and an object is compiled again only if one of those files is newer: a change in csrc/cpu
compiles no CUDA. A build never looks at the machine's own processor or GPU, unless it is asked to: one wheel runs on all
machines, and the engine chooses at run time.

FASTDECODE_CUDA=0|1|local  leave the CUDA engine out; fail without nvcc; compile it for the GPUs of this machine only, and for 9.0 if
                           there is none (`make dev` does). Unset: build it if nvcc is on PATH or in CUDA_HOME
TORCH_CUDA_ARCH_LIST       architectures, such as "8.0 9.0+PTX"; unset: those below that this nvcc knows
"""

import hashlib
import importlib.util
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

COMMON = [
    "-O3",
    "-std=c++17",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
    "-g0",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
# gcc 12 finds fault with its own AVX-512 header, on thousands of lines. What is ours in that file is compiled in the others too.
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
X86_ONLY = {"csrc/cpu/target_avx2.cpp": AVX2, "csrc/cpu/target_avx512.cpp": [*AVX2, *AVX512]}

SOURCES = sorted(path.as_posix() for pattern in ("*.cpp", "cpu/*.cpp") for path in Path("csrc").glob(pattern))
HEADERS = sorted(path.as_posix() for pattern in ("*.h", "*.inl", "*.cuh") for path in Path("csrc").rglob(pattern))


CUDA_SOURCE = "csrc/cuda/launch.cu"
CUDA_ARCHS = "8.0 8.6 8.9 9.0+PTX 10.0 12.0+PTX"
LOCAL_ARCH = "9.0"
CUDA_FLAGS = ["-O3", "-std=c++17", "--threads", "0", "-Xptxas", "-v", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


WITHOUT_CUDA = "FASTDECODE_CUDA=0 builds without the CUDA engine"


class Cuda:
    """nvcc and what to build with it, or why there is none."""

    def __init__(self):
        asked = os.environ.get("FASTDECODE_CUDA", "")
        home = os.environ.get("CUDA_HOME")
        self.nvcc = shutil.which("nvcc") or (home and shutil.which("nvcc", path=str(Path(home, "bin"))))
        if asked == "1" and not self.nvcc:
            raise SystemExit(
                "FASTDECODE_CUDA=1 asks for the CUDA engine, and nvcc is neither on PATH nor in CUDA_HOME/bin."
            )
        self.missing = (
            "not built, FASTDECODE_CUDA=0" if asked == "0" else "" if self.nvcc else "not built, no nvcc found"
        )
        if self.missing:
            return
        known = self._ask("--list-gpu-arch")
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or (local_archs() if asked == "local" else CUDA_ARCHS)
        self.archs = [arch for arch in wanted.replace(";", " ").split() if f"compute_{self._digits(arch)}" in known]
        if not self.archs:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST must name architectures that {self.nvcc} knows; got {wanted!r}; {WITHOUT_CUDA}."
            )
        self.version = self._ask("--version").split("release ")[-1].split(",")[0]
        # As PTX, for GPUs that are newer than this list, and as machine code.
        self.flags = [*CUDA_FLAGS, f'-DFD_CUDA_ARCHS="{" ".join(self.archs)}"', "-Icsrc"]
        for arch in self.archs:
            n = self._digits(arch)
            code = f"[sm_{n},compute_{n}]" if arch.endswith("+PTX") else f"sm_{n}"
            self.flags += ["-gencode", f"arch=compute_{n},code={code}"]

    def _ask(self, option):
        done = subprocess.run([self.nvcc, option], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.nvcc} {option} fails; {WITHOUT_CUDA}. It says: {done.stdout}{done.stderr}")
        return done.stdout

    def __str__(self):
        return self.missing or f"{self.version} for {' '.join(self.archs)}"

    @staticmethod
    def _digits(arch):
        return arch.removesuffix("+PTX").replace(".", "")

    def object(self):
        """Named after the compiler and its flags, as the folder of the other objects is."""
        key = hashlib.sha256(shlex.join([self.version, *self.flags]).encode()).hexdigest()[:12]
        return Path("build", f"objects-cuda-{key}", "launch.o")

    def compile(self, built):
        """What ptxas says about registers and spills goes to a file beside the object."""
        built.parent.mkdir(parents=True, exist_ok=True)
        command = [self.nvcc, *self.flags, *write_reads(built), "-c", CUDA_SOURCE, "-o", str(built)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        built.with_suffix(".log").write_text(done.stdout)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)}\n{done.stdout}\n{WITHOUT_CUDA}.")

    def link_flags(self):
        """The CUDA runtime, linked statically: it looks for the driver when it is first used, and not before."""
        told = subprocess.run([self.nvcc, "--dryrun", "-c", CUDA_SOURCE], stderr=subprocess.PIPE, text=True).stderr
        root = Path(told.split("#$ TOP=")[-1].splitlines()[0])  # where nvcc itself thinks its toolkit is
        found = [
            path.parent
            for place in ("lib64", "lib", "targets/*/lib")
            for path in root.glob(f"{place}/libcudart_static.a")
        ]
        return [*(f"-L{path}" for path in found[:1]), "-lcudart_static", "-ldl", "-lrt"]


def say(line):
    print(f"fastdecode: {line}", flush=True)


def local_archs():
    """The compute capabilities of the GPUs that are here; without one, a usual one, so that the kernels are compiled at all."""
    if not shutil.which("nvidia-smi"):
        return LOCAL_ARCH
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True).stdout
    return " ".join(sorted({line.strip() for line in told.splitlines() if line.strip()})) or LOCAL_ARCH


def write_reads(built):
    """The flags that make g++, clang++ or nvcc write beside an object which of our files it read."""
    return ["-MMD", "-MF", str(Path(built).with_suffix(".d"))]


def is_stale(built, source, headers):
    """Is one of our files that this object was compiled from newer, or gone? If the compiler did not say which, any header may be."""
    listing = Path(built).with_suffix(".d")
    read = headers
    if (
        listing.is_file()
    ):  # a make rule: "object: file file", with a backslash before each newline and each space in a name
        files = listing.read_text().partition(": ")[2].replace("\\\n", " ")
        read = [name.replace("\\ ", " ") for name in re.split(r"(?<!\\)\s+", files)]
        read = [
            name for name in read if name and not os.path.isabs(name)
        ]  # pip installs pybind11 into another folder each time
    return newer_group([source, *read], str(built), missing="newer")


def pybind11_headers():
    """Its own, or where it is not installed torch's copy, which is found without importing torch."""
    try:
        import pybind11
    except ImportError:
        torch = importlib.util.find_spec("torch")
        if torch is None:
            raise SystemExit(
                "fastdecode is compiled with pybind11, which is not installed: pip install pybind11."
            ) from None
        return str(Path(torch.origin).parent / "include")
    return pybind11.get_include()


class BuildNative(build_ext):
    def build_extension(self, ext):
        if self.compiler.compiler_type != "unix":
            raise SystemExit("fastdecode is compiled with g++ or clang++, and this build found neither.")
        cuda = Cuda()
        cuda_object = None if cuda.missing else cuda.object()
        stale = cuda_object and (self.force or is_stale(cuda_object, CUDA_SOURCE, ext.depends))
        if stale:  # said before the minutes that it takes; pip shows it with -v, and when a build fails
            say(f"found {cuda.nvcc}: compiling the CUDA engine with {cuda} takes minutes; {WITHOUT_CUDA}")
        command = getattr(self.compiler, "compiler_so_cxx", self.compiler.compiler_so)
        # A build for two processors at once (macOS: -arch arm64 -arch x86_64) can only hold what both understand.
        is_x86 = platform.machine().lower() in ("x86_64", "amd64") and "arm64" not in command
        macros = [("FD_X86", str(int(is_x86))), ("FD_CUDA", str(int(not cuda.missing)))]
        # Objects live under build/ whatever was asked for, so that `pip install .` and `build_ext --inplace` share them. The
        # folder is named after the Python, the compiler and its flags: a change of CXX or CXXFLAGS does not find old objects.
        key = hashlib.sha256(shlex.join([*command, *COMMON, *map(str, macros)]).encode()).hexdigest()[:12]
        folder = Path("build", f"objects-{sys.implementation.cache_tag}-{key}")

        def compiled(source):
            built = self.compiler.object_filenames([source], output_dir=str(folder))[0]
            if self.force or newer_group(["setup.py"], built) or is_stale(built, source, ext.depends):
                Path(built).parent.mkdir(parents=True, exist_ok=True)  # distutils' own way is not safe in threads
                flags = [*COMMON, *X86_ONLY.get(source, []), *write_reads(built)]
                self.compiler.compile([source], str(folder), macros, include, extra_postargs=flags)
            return built

        include = ["csrc", pybind11_headers(), *self.include_dirs]
        sources = [source for source in ext.sources if is_x86 or source not in X86_ONLY]
        # More threads than cores gain nothing, and each compiler wants memory.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources))
        libraries = ["-pthread"]
        if sys.platform == "linux":
            libraries.append(f"-Wl,--build-id=0x{runpy.run_path('csrc/source_key.py')['source_key']()}")
        if cuda_object:
            if stale:
                cuda.compile(cuda_object)
            objects.append(str(cuda_object))
            libraries += cuda.link_flags()
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=libraries, target_lang="c++"
        )
        name = os.popen(f"{shlex.quote(command[0])} --version").readline().strip() or command[0]
        sets = "baseline, avx2, avx512" if is_x86 else "baseline"
        say(f"compiler: {name}; instruction sets: {sets}; cuda: {cuda}")


setup(
    ext_modules=[Extension("fastdecode._native", sources=SOURCES, depends=HEADERS, language="c++")],
    cmdclass={"build_ext": BuildNative},
)
