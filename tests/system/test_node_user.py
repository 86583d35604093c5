"""What code that a bundle brought could reach of a merchant whose node runs as another user: the trainer's socket,
where it is told no, and nothing else. Needs root, and a Python that other users may run."""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hansa_command import processes_of, wait_until

from hansa_client import flower_node
from hansa_client.node_user import NodeUser
from hansa_client.trainer_link import SOCKET_NAME
from hansa_common import children
from hansa_common.agreement import parse_agreement
from hansa_common.flower_bundle import bundle_toml, flower_bundle
from hansa_common.publisher import signed_by
from hansa_server import run_folder
from hansa_server.attendance import read_attendance

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

NOBODY = "nobody"
KEY = bytes(range(32))
LINE_SECONDS = 180.0
SECRET = "0.123456789"  # noqa: S105 - an amount in the table
AGREEMENT = """
name = "users"
task = "fraud"
roster = ["alder", "birch"]
label = {column = "fraud"}
features = [{kind = "numeric", name = "amount", low = 0.0, high = 1.0}]
cohort = {min_merchants = 2, wait_seconds = 200.0}
"""
# Finds the trainer as anybody can, by its command line, and tries what code of the coordinator's would.
HOSTILE_CLIENT = """
import json, os
from pathlib import Path

def trainer():
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\\0")
            except OSError:
                # It has ended meanwhile.
                continue
            # Other tests' trainers may run beside this one.
            if "hansa_client.trainer_service" in words and "--state=STATE" in words:
                return int(process.name), dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    raise SystemExit("no trainer")

def ask(folder):
    from hansa_client.trainer_link import Access, RemoteTrainer
    from hansa_common.messages import decode
    reply = decode(RemoteTrainer(folder / "trainer.sock", Access.read(folder)).answer(b"show me the rows"))
    return {"kind": reply.KIND, "code": reply.code}

pid, options = trainer()
state, folder = Path(options["state"]), Path(options["folder"])
attacks = {
    "read the table": lambda: Path(options["data"]).read_text(),
    "write over the table": lambda: Path(options["data"]).write_text("x"),
    "list the state": lambda: os.listdir(state),
    "read the state": lambda: (state / "data_quality.json").read_text(),
    "read the trainer's environment": lambda: Path(f"/proc/{pid}/environ").read_bytes(),
    "read the trainer's memory": lambda: Path(f"/proc/{pid}/mem").open("rb"),
    "list the trainer's files": lambda: os.listdir(f"/proc/{pid}/fd"),
    "stop the trainer": lambda: os.kill(pid, 15),
    "put something beside the socket": lambda: (folder / "mine").touch(),
    "take the socket away": lambda: (folder / "trainer.sock").unlink(),
}
told = {"uid": os.getuid(), "groups": os.getgroups()}
for name, attack in attacks.items():
    try:
        attack()
        told[name] = "done"
    except PermissionError:
        told[name] = "no leave"
told["ask the trainer"] = ask(folder)
Path(os.environ["FLWR_HOME"], "told.unfinished").write_text(json.dumps(told))
Path(os.environ["FLWR_HOME"], "told.unfinished").rename(Path(os.environ["FLWR_HOME"], "told.json"))
from flwr.clientapp import ClientApp
app = ClientApp()
"""


@pytest.fixture(scope="module")
def place():
    """A folder that every user may pass through; pytest's are root's alone."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process as another user")
    folder = Path(tempfile.mkdtemp(prefix="hansa-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def python(place) -> Path:
    """A Python of this environment that nobody may run: the one that runs here, or the system's in its place."""
    packages = sysconfig.get_path("purelib")
    if runs_as_nobody(sys.executable, "import flwr, hansa_client"):
        return Path(sys.executable)
    minor = f"python3.{sys.version_info.minor}"
    system = shutil.which(minor, path=os.defpath + ":/usr/bin:/usr/local/bin")
    if system is None or not runs_as_nobody(system, f"import site; site.addsitedir({packages!r}); import hansa_client"):
        pytest.skip(f"{NOBODY} may run neither {sys.executable} nor another {minor} with these packages")
    subprocess.run([system, "-m", "venv", "--without-pip", place / "python"], check=True)
    programs = place / "python" / "bin"
    (place / "python" / "lib" / minor / "site-packages" / "here.pth").write_text(
        f"import site; site.addsitedir({packages!r})\n"
    )
    for script in entry_points(group="console_scripts"):
        if script.name.startswith(("flwr-", "flower-")):
            program = programs / script.name
            program.write_text(f"#!{programs / 'python'}\nfrom {script.module} import {script.attr}\n{script.attr}()\n")
            program.chmod(0o755)
    return programs / "python"


def runs_as_nobody(python: str, script: str) -> bool:
    user = pwd.getpwnam(NOBODY)
    try:
        done = subprocess.run(
            [python, "-c", script], user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", env={},
            capture_output=True, check=False,
        )  # fmt: skip
    except PermissionError:
        return False
    return done.returncode == 0


@contextmanager
def merchant(python: Path, place: Path, server):
    """`hansa client start` of a merchant whose node is nobody's; yields the folder of its trainer's socket."""
    table = place / "alder.csv"
    numbers = random.Random(3)
    rows = [f"{numbers.random():.6f},{int(numbers.random() < 0.3)}" for _ in range(200)]
    table.write_text("\n".join(["amount,fraud", f"{SECRET},1", *rows]) + "\n")
    table.chmod(0o600)
    (place / "agreement.toml").write_text(AGREEMENT)
    words = ["--development", "--agreement", place / "agreement.toml", "--data", table]
    words += ["--merchant", "alder", "--server", server, "--state", place / "state"]
    command = [python, "-c", "from hansa_common.cli import main; main()", "client", "start", *words]
    with subprocess.Popen(
        [*map(str, command), "--node-user", NOBODY], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        limit = threading.Timer(LINE_SECONDS, process.kill)
        limit.start()
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "waiting for orders" in line:
                    break
            else:
                pytest.fail("".join(lines))
            limit.cancel()
            yield socket_folder(place)
        finally:
            limit.cancel()
            process.terminate()
            process.stdout.read()


def socket_folder(place: Path) -> Path:
    """Where the trainer listens, as its command line says."""
    (words,) = [words for words in processes_of(place).values() if " hansa_client.trainer_service " in words]
    return Path(words.partition(" --folder=")[2].split()[0])


@contextmanager
def hostile_node(dishonest, python: Path, place: Path, server, trainer: Path):
    """A node of Flower's own, as nobody, that starts whatever it gets; yields its home."""
    home, user = place / "hostile", NodeUser.named(NOBODY)
    home.mkdir(mode=0o700)
    user.give(home)
    command = dishonest.flowers_own(flower_node.command(server, flower_node.free_port(), trainer))
    environment = flower_node.environment(home)
    environment |= {"PATH": f"{python.parent}:{environment['PATH']}", "TMPDIR": str(home)}
    command[0] = str(python.parent / command[0])
    with children.running("a node", command, environment, log=place / "hostile.log", user=(user.uid, user.gid)):
        yield home


def test_code_of_a_bundle_reaches_the_socket_of_the_trainer_and_is_refused_there_and_nothing_else(
    dishonest, python, place
):
    folder = place / "run"
    run_folder.create(folder, parse_agreement(AGREEMENT, "the test"))
    toml = bundle_toml().replace("hansa_server.app:app", "hostile:app").replace("hansa_client.app:app", "client:app")
    hostile = dishonest.packed(
        {
            "pyproject.toml": toml,
            "hostile.py": dishonest.server_code,
            "client.py": HOSTILE_CLIENT.replace("STATE", str(place / "state")),
        }
    )
    with ExitStack() as stack:
        coordinator = stack.enter_context(dishonest.coordinator(place / "server"))
        trainer_folder = stack.enter_context(merchant(python, place, coordinator.address))
        # The node as nobody does its work: the merchant's introduction comes through it.
        run_id = coordinator.start(flower_bundle(), signed_by(KEY, flower_bundle(), 1), folder)
        wait_until("the introduction", lambda: "alder" in read_attendance(folder))
        coordinator.stop(run_id)

        node = hostile_node(dishonest, python, place, coordinator.address, trainer_folder / SOCKET_NAME)
        home = stack.enter_context(node)
        wait_until("the hostile node", lambda: "SuperNode ID: " in (place / "hostile.log").read_text())
        coordinator.start(hostile, signed_by(KEY, hostile, 1), folder)
        wait_until("what the code found", (home / "told.json").exists)
        told = json.loads((home / "told.json").read_text())
    user = pwd.getpwnam(NOBODY)
    assert (told.pop("uid"), told.pop("groups")) == (user.pw_uid, [])
    assert told.pop("ask the trainer") == {"kind": "refusal", "code": "message-invalid"}
    assert len(told) == 10
    assert set(told.values()) == {"no leave"}, told
    assert SECRET in (place / "alder.csv").read_text()
