"""How the package is built: what the extension links, what a build compiles again, and that an installed wheel works."""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastdecode as fd
from fastdecode.cli import command as cli
from fastdecode.cli import generate
from tests import ROOT

X86 = platform.machine().lower() in ("x86_64", "amd64")
ON_LINUX = pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF files")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints; the test fails if the command does. It sees no `fastdecode` but the one it is pointed at."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("FASTDECODE_", "PYTHONPATH"))
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=inherited | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def project() -> dict:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# ---- pyproject.toml --------------------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place():
    assert project()["project"]["dynamic"] == ["version"] and "version" not in project()["project"]
    assert project()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fastdecode.__version__"}
    files = [
        "pyproject.toml",
        "setup.py",
        "README.md",
        "Makefile",
        *(p.relative_to(ROOT) for p in ROOT.glob("fastdecode/**/*.py")),
    ]
    literal = re.compile(rf"[\"']{re.escape(fd.__version__)}[\"']")
    assert [str(f) for f in files if literal.search((ROOT / f).read_text(encoding="utf-8"))] == [
        "fastdecode/__init__.py"
    ]


def test_building_needs_no_torch_and_running_needs_no_more_than_torch_and_numpy():
    names = [re.match(r"[\w-]+", text).group() for text in project()["build-system"]["requires"]]
    assert sorted(names) == ["pybind11", "setuptools", "wheel"]
    assert project()["project"]["dependencies"] == ["torch>=2.4", "numpy"]


def test_the_demo_asks_for_what_its_extra_installs():
    extra = [re.match(r"[\w-]+", text).group() for text in project()["project"]["optional-dependencies"]["demo"]]
    plot = ("matplotlib",)
    assert sorted(extra) == sorted(generate.SHOWING + generate.READING_GGUF + plot)


def test_the_classifiers_name_the_pythons_that_wheels_are_built_for():
    metadata = project()
    named = re.findall(r"Python :: (3\.\d+)", " ".join(metadata["project"]["classifiers"]))
    built = re.findall(r"cp3(\d+)-", metadata["tool"]["cibuildwheel"]["build"])
    assert named == [f"3.{minor}" for minor in built]
    assert metadata["project"]["requires-python"] == f">={named[0]}"
    assert metadata["project"]["scripts"] == {"fastdecode": "fastdecode.cli.command:command"} and callable(cli.command)


def test_the_program_that_the_type_checker_reads_runs(tmp_path):
    printed = run(sys.executable, ROOT / "tests" / "house" / "user_code.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "torch.Size([2, 1000]) torch.Size([2, 8])" in printed


# ---- the compiled module ---------------------------------------------------------------------------------------------


@ON_LINUX
def test_the_extension_links_no_torch():
    from fastdecode import _native

    if not shutil.which("readelf"):
        pytest.skip("readelf is not installed")
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", _native.__file__, cwd=ROOT))
    assert any(name.startswith(("libstdc++", "libc++")) for name in needed), needed
    # What every Linux has (PEP 600), and so what `auditwheel repair` leaves where it is.
    everywhere = r"(libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux[\w-]*)\.so\.\d+$"
    assert [name for name in needed if not re.match(everywhere, name)] == []


# What the real sources look like to setup.py, and compiled at once.
STAND_IN = {
    "csrc/edge.h": "#define EDGE 1\n",
    "csrc/bindings.cpp": '#include "edge.h"\nint bound() { return EDGE; }\n',
    "csrc/cpu/engine.cpp": "#ifndef FD_X86\n#error FD_X86 must be defined\n#endif\nint engine() { return FD_X86; }\n",
    "csrc/cpu/row.inl": "static int row() { return 1; }\n",
    "csrc/cpu/target_baseline.cpp": '#include "row.inl"\n#ifdef __AVX__\n#error the baseline must run everywhere\n#endif\nint base() { return row(); }\n',
    "csrc/cpu/target_avx2.cpp": "#if !defined __AVX2__ || !defined __FMA__ || !defined __F16C__ || defined __AVX512F__\n#error flags\n#endif\n",
    "csrc/cpu/target_avx512.cpp": "#if !defined __AVX512VL__ || !defined __AVX512BW__ || !defined __AVX512DQ__\n#error flags\n#endif\n",
}


@pytest.fixture
def stand_in(tmp_path) -> Path:
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "csrc/source_key.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in STAND_IN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "fastdecode").mkdir()
    shutil.copy(ROOT / "fastdecode" / "__init__.py", tmp_path / "fastdecode")
    return tmp_path


def built_in_place(tree: Path, **environment: str) -> dict[str, int]:
    """Build; which object files there are, and when each was written."""
    environment = {"FASTDECODE_CUDA": "0", **environment}  # there is no CUDA source to compile
    printed = run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, **environment)
    summary = [line for line in printed.splitlines() if line.startswith("fastdecode: compiler: ")]
    assert len(summary) == 1 and "instruction sets: baseline" in summary[0] and "cuda: not built" in summary[0]
    assert list((tree / "fastdecode").glob("_native.*"))
    return {str(path.relative_to(tree)): path.stat().st_mtime_ns for path in (tree / "build").rglob("*.o")}


def test_a_build_compiles_what_changed_and_nothing_else(stand_in):
    first = built_in_place(stand_in)
    assert len(first) == (5 if X86 else 3)
    assert built_in_place(stand_in) == first

    source = stand_in / "csrc/cpu/engine.cpp"
    source.write_text(source.read_text() + "int more() { return 2; }\n")
    second = built_in_place(stand_in)
    assert {Path(name).stem for name in first if first[name] != second[name]} == {"engine"}

    def compiled_after(name: str, text: str) -> set[str]:
        before = built_in_place(stand_in)
        (stand_in / name).write_text(text)
        after = built_in_place(stand_in)
        return {Path(built).stem for built in after if after[built] != before.get(built)}

    everything = {Path(name).stem for name in first}
    assert compiled_after("csrc/edge.h", "#define EDGE 2\n") == {"bindings"}, "it includes this"
    assert compiled_after("csrc/cpu/row.inl", "static int row() { return 2; }\n") == {"target_baseline"}
    alone = "static int row() { return 3; }\nint base() { return row(); }\n"
    assert compiled_after("csrc/cpu/target_baseline.cpp", alone) == {"target_baseline"}
    assert compiled_after("csrc/cpu/row.inl", "") == set(), "nothing includes it now"
    assert compiled_after("setup.py", (stand_in / "setup.py").read_text()) == everything, "it holds the flags"

    before = built_in_place(stand_in)
    (stand_in / "csrc/edge.h").write_text("#define EDGE 3\n")
    for listing in (stand_in / "build").rglob("*.d"):
        listing.unlink()
    after = built_in_place(stand_in)
    assert all(after[name] != before[name] for name in before), "any file may include it, as far as anyone knows"

    assert len(built_in_place(stand_in, CXXFLAGS="-DOTHER")) == 2 * len(first), "other flags, other objects"


@ON_LINUX
def test_an_extension_knows_the_source_it_was_compiled_from(stand_in):
    """By its build id; a file that is not compiled counts too when it has the flags."""

    def is_current() -> bool:
        built = next((stand_in / "fastdecode").glob("_native.*"))
        return runpy.run_path(str(stand_in / "csrc/source_key.py"))["holds_key"](built)

    built_in_place(stand_in)
    assert is_current()
    for name in ("csrc/edge.h", "csrc/cpu/engine.cpp", "setup.py"):
        with open(stand_in / name, "a") as file:
            file.write("\n")
        assert not is_current(), f"{name} changed"
        built_in_place(stand_in)
        assert is_current()


def test_torch_lends_its_copy_of_pybind11(stand_in):
    """To a machine that has torch alone."""
    (stand_in / "csrc/bindings.cpp").write_text("#include <pybind11/pybind11.h>\n")
    without = "import sys, runpy; sys.modules['pybind11'] = None; runpy.run_path('setup.py', run_name='__main__')"
    run(sys.executable, "-c", without, "-q", "build_ext", "--inplace", cwd=stand_in, FASTDECODE_CUDA="0")
    assert list((stand_in / "fastdecode").glob("_native.*"))


@pytest.mark.skipif(bool(shutil.which("nvcc", path="/usr/bin:/bin")), reason="nvcc is where the compiler is")
def test_cuda_that_is_asked_for_must_be_there(stand_in):
    with pytest.raises(AssertionError, match="FASTDECODE_CUDA=1 asks for the CUDA engine, and nvcc is neither"):
        built_in_place(stand_in, FASTDECODE_CUDA="1", CUDA_HOME="", PATH="/usr/bin:/bin")
    assert not list((stand_in / "fastdecode").glob("_native.*"))
    built_in_place(stand_in, FASTDECODE_CUDA="", CUDA_HOME="", PATH="/usr/bin:/bin")


# What setup.py asks nvcc, and a compiler of nothing; the CUDA runtime that is linked is an empty archive.
NVCC = """#!/bin/sh
case "$*" in
  --list-gpu-arch) printf 'compute_80\\ncompute_90\\n' ;;
  --version) echo 'Cuda compilation tools, release 99.1, V99.1.2' ;;
  --dryrun*) echo "#$ TOP={folder}" >&2 ;;
  *{fails}*) echo 'error: unsupported GNU version' >&2; exit 1 ;;
  *) for last; do :; done; echo 'void fd_cuda() {}' | c++ -x c++ -fPIC -c - -o "$last"
     printf '%s: csrc/cuda/launch.cu \\\\\n csrc/edge.h\n' "$last" > "${last%.o}.d" ;;
esac
"""


def with_nvcc(tree: Path, fails: str = "nothing") -> dict[str, str]:
    """A stand-in for the CUDA toolkit in this tree; the environment in which a build finds it."""
    home = tree / "toolkit"
    for folder in ("bin", "lib64"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "lib64" / "libcudart_static.a").write_text("!<arch>\n")
    (home / "bin" / "nvcc").write_text(NVCC.replace("{folder}", str(home)).replace("{fails}", fails))
    (home / "bin" / "nvcc").chmod(0o755)
    (tree / "csrc" / "cuda").mkdir(exist_ok=True)
    (tree / "csrc" / "cuda" / "launch.cu").write_text("")
    return {"CUDA_HOME": str(home), "PATH": "/usr/bin:/bin", "TORCH_CUDA_ARCH_LIST": ""}


@ON_LINUX
@pytest.mark.skipif(bool(shutil.which("nvcc", path="/usr/bin:/bin")), reason="nvcc is where the compiler is")
def test_a_change_for_the_cpu_compiles_no_cuda(stand_in):
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    environment = with_nvcc(stand_in)
    assert "takes minutes" in run(*command, cwd=stand_in, **environment)
    (stand_in / "csrc/cpu/row.inl").write_text("static int row() { return 2; }\n")
    assert "takes minutes" not in run(*command, cwd=stand_in, **environment)
    (stand_in / "csrc/edge.h").write_text("#define EDGE 2\n")
    assert "takes minutes" in run(*command, cwd=stand_in, **environment)


@ON_LINUX
@pytest.mark.skipif(bool(shutil.which("nvcc", path="/usr/bin:/bin")), reason="nvcc is where the compiler is")
def test_a_local_build_is_for_the_gpus_that_are_here(stand_in):
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    environment = with_nvcc(stand_in) | {"FASTDECODE_CUDA": "local"}
    assert "cuda: 99.1 for 9.0\n" in run(*command, cwd=stand_in, **environment), "none is here"
    query = stand_in / "toolkit/bin/nvidia-smi"
    query.write_text("#!/bin/sh\nprintf '8.0\\n8.0\\n'\n")
    query.chmod(0o755)
    environment["PATH"] = f"{query.parent}:{environment['PATH']}"
    assert "cuda: 99.1 for 8.0\n" in run(*command, cwd=stand_in, **environment)
    assert "cuda: 99.1 for 9.0\n" in run(*command, cwd=stand_in, **environment | {"TORCH_CUDA_ARCH_LIST": "9.0"})


FOUND = r"^fastdecode: found \S+/nvcc: compiling the CUDA engine with 99\.1 for 8\.0 9\.0\+PTX takes minutes; FASTDECODE_CUDA=0 builds without"


@ON_LINUX
@pytest.mark.skipif(bool(shutil.which("nvcc", path="/usr/bin:/bin")), reason="nvcc is where the compiler is")
def test_the_build_says_what_takes_minutes_before_it_begins(stand_in):
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    environment = with_nvcc(stand_in, fails="launch.cu")
    with pytest.raises(AssertionError) as failed:
        run(*command, cwd=stand_in, **environment)
    said, _, after = str(failed.value).partition("error: unsupported GNU version")
    assert re.search(FOUND, said, re.MULTILINE) and "FASTDECODE_CUDA=0 builds without" in after
    environment = with_nvcc(stand_in)
    printed = run(*command, cwd=stand_in, **environment)
    assert re.search(FOUND, printed, re.MULTILINE) and "cuda: 99.1 for 8.0 9.0+PTX" in printed
    assert "takes minutes" not in run(*command, cwd=stand_in, **environment), "nothing is compiled now"
    (stand_in / "toolkit/bin/nvcc").write_text("#!/bin/sh\necho 'no such option' >&2; exit 1\n")
    with pytest.raises(
        AssertionError, match=r"nvcc --list-gpu-arch fails; FASTDECODE_CUDA=0 builds without.*no such option"
    ):
        run(*command, cwd=stand_in, **environment)


@ON_LINUX
@pytest.mark.skipif(bool(shutil.which("nvcc", path="/usr/bin:/bin")), reason="nvcc is where the compiler is")
def test_what_pip_shows_of_it(stand_in):
    """pip hides what a build prints, unless it is asked to, or the build fails; CONTRIBUTING.md says so."""
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
    )
    for package in project()["tool"]["setuptools"]["packages"]:
        (stand_in / package.replace(".", "/")).mkdir(exist_ok=True)
    environment = with_nvcc(stand_in)
    assert "takes minutes" not in run(*pip, "-w", stand_in / "quiet", cwd=stand_in, **environment)
    shutil.rmtree(stand_in / "build")
    assert "takes minutes; FASTDECODE_CUDA=0" in run(*pip, "-v", "-w", stand_in / "told", cwd=stand_in, **environment)
    shutil.rmtree(stand_in / "build")
    with pytest.raises(AssertionError, match=r"(?s)takes minutes; FASTDECODE_CUDA=0.*unsupported GNU version"):
        run(*pip, "-w", stand_in / "failed", cwd=stand_in, **with_nvcc(stand_in, fails="launch.cu"))


# ---- what is shipped -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A folder with a source distribution of this tree unpacked in `tree`, the wheel built from that, and the wheel installed
    in `site`. Object files that are younger than their sources are taken along, so that little is compiled again."""
    here = tmp_path_factory.mktemp("shipped")
    copied = here / "copy"
    left_out = shutil.ignore_patterns(
        ".venv", ".git", "lib.*", "bdist.*", "*.so", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, copied, ignore=left_out)
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", here, cwd=copied)
    with tarfile.open(next(here.glob("*.tar.gz"))) as archive:
        archive.extractall(here)
    next(path for path in here.glob("fastdecode-*") if path.is_dir()).rename(here / "tree")
    if (copied / "build").is_dir():
        shutil.copytree(copied / "build", here / "tree" / "build")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", here, cwd=here / "tree")
    run(*pip, "install", "--no-deps", "--no-index", "--target", here / "site", next(here.glob("*.whl")), cwd=here)
    return here


def test_the_source_distribution_holds_what_a_build_and_the_tests_need(shipped):
    tracked = [
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        ".ci/run",
        "tests/data/smollm2_logits.safetensors",
    ]
    for folder, pattern in (("csrc", "**/*"), ("tests", "**/*.py"), ("fastdecode", "**/*.py"), ("examples", "*.py")):
        tracked += [str(path.relative_to(ROOT)) for path in ROOT.glob(f"{folder}/{pattern}") if path.is_file()]
    assert [name for name in tracked if not (shipped / "tree" / name).is_file()] == []
    assert not list((shipped / "tree" / "fastdecode").glob("*.so"))


def test_the_wheel_holds_the_package_and_nothing_else(shipped):
    wheel = next(shipped.glob("*.whl"))
    assert wheel.stat().st_size < 20e6
    assert wheel.name.startswith(f"fastdecode-{fd.__version__}-cp")
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if name.startswith("fastdecode/")}
    extension = {name for name in inside if re.match(r"fastdecode/_native\..*\.so$", name)}
    assert len(extension) == 1
    assert inside - extension == {
        "fastdecode/py.typed",
        *(str(path.relative_to(ROOT)) for kind in ("py", "pyi") for path in ROOT.glob(f"fastdecode/**/*.{kind}")),
    }
    assert all(name in inside or ".dist-info/" in name for name in names)
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_installed_wheel_passes_its_self_test(shipped):
    printed = run(sys.executable, "-m", "fastdecode", cwd=shipped, PYTHONPATH=str(shipped / "site"))
    assert str(shipped / "site" / "fastdecode") in printed, "another copy ran"
    assert "all self-tests passed" in printed and re.search(r"^  cpu +ok$", printed, re.MULTILINE)
    script = shipped / "site" / "bin" / "fastdecode"
    printed = run(script, "--version", cwd=shipped, PYTHONPATH=str(shipped / "site"))
    assert printed == f"fastdecode {fd.__version__}\n"


@ON_LINUX
@pytest.mark.skipif(not X86, reason="only x86-64 has files with instruction sets of their own")
def test_no_code_for_a_newer_processor_can_replace_the_baseline(shipped):
    """The linker keeps one copy of a function that several files define inline. If it kept the AVX-512 one of, say, a standard
    container, a machine without AVX-512 would stop there. So those files may share no such function with another file."""
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    for name in ("target_avx2", "target_avx512"):
        built = next((shipped / "tree" / "build").rglob(f"{name}.o"))
        symbols = re.findall(r"^[0-9a-f]+ [VWu] (.*)$", run("nm", "-C", built, cwd=shipped), re.MULTILINE)
        assert [symbol for symbol in symbols if f"fastdecode::{name}::" not in symbol] == []
