"""Builds the one compiled module, `fastdecode._native`; everything else about the package stands in pyproject.toml.

setuptools gives all files of an extension the same flags, and compiles them one after the other and all again when one
changes. Here a file can have the flags of its instruction set, the files are compiled side by side, and only those that
changed. It never looks at the machine's own processor: one wheel runs on all, and the engine chooses at run time.
"""

import hashlib
import os
import platform
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
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
HEADERS = sorted(path.as_posix() for pattern in ("*.h", "*.inl") for path in Path("csrc").rglob(pattern))


class BuildNative(build_ext):
    def build_extension(self, ext):
        if self.compiler.compiler_type != "unix":
            raise SystemExit("fastdecode is compiled with g++ or clang++, and this build found neither.")
        if os.environ.get("FASTDECODE_CUDA", "0") not in ("", "0"):
            raise SystemExit("FASTDECODE_CUDA asks for the CUDA engine, which this version does not have; unset it.")
        command = getattr(self.compiler, "compiler_so_cxx", self.compiler.compiler_so)
        # A build for two processors at once (macOS: -arch arm64 -arch x86_64) can only hold what both understand.
        is_x86 = platform.machine().lower() in ("x86_64", "amd64") and "arm64" not in command
        macros = [("FD_X86", str(int(is_x86)))]
        # Objects live under build/ whatever was asked for, so that `pip install .` and `build_ext --inplace` share them. The
        # folder is named after the Python, the compiler and its flags: a change of CXX or CXXFLAGS does not find old objects.
        key = hashlib.sha256(shlex.join([*command, *COMMON, str(is_x86)]).encode()).hexdigest()[:12]
        folder = Path("build", f"objects-{sys.implementation.cache_tag}-{key}")

        def compiled(source):
            built = self.compiler.object_filenames([source], output_dir=str(folder))[0]
            if self.force or newer_group([source, *ext.depends, "setup.py"], built):
                Path(built).parent.mkdir(parents=True, exist_ok=True)  # distutils' own way is not safe in threads
                flags = [*COMMON, *X86_ONLY.get(source, [])]
                self.compiler.compile([source], str(folder), macros, include, extra_postargs=flags)
            return built

        include = ["csrc", pybind11.get_include(), *self.include_dirs]
        sources = [source for source in ext.sources if is_x86 or source not in X86_ONLY]
        # More threads than cores gain nothing, and each compiler wants memory.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources))
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=["-pthread"], target_lang="c++"
        )
        name = os.popen(f"{shlex.quote(command[0])} --version").readline().strip() or command[0]
        sets = "baseline, avx2, avx512" if is_x86 else "baseline"
        print(
            f"fastdecode: compiler: {name}; instruction sets: {sets}; cuda: not built yet in this version", flush=True
        )


setup(
    ext_modules=[Extension("fastdecode._native", sources=SOURCES, depends=HEADERS, language="c++")],
    cmdclass={"build_ext": BuildNative},
)
