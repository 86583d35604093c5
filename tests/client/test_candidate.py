"""A TFLite file that nobody vouches for computes, and does nothing else: neither it nor a process that it has taken
over reaches a file, the network or another process, and whatever it answers, the parent lives on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from hansa_client import jail
from hansa_client.candidate import Limits, candidate_logits
from hansa_client.candidate_process import DOUBLING
from hansa_client.halting import Halt
from hansa_client.judging import compared
from hansa_common.bundle import FLOAT_NAME, INT8_NAME
from hansa_common.errors import DeadlineError, MerchantError
from hansa_common.features import Inputs
from hansa_common.tflite import TfliteNetwork

pytestmark = pytest.mark.system
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
INPUTS = Inputs(np.zeros((3, 2), np.float32), np.zeros((3, 0), np.int32))

# What a process that a file has taken over would try. Each act raises, or the jail has a hole.
ACTS = """
import ctypes, os, resource, signal, socket, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)

def system_call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), str(number))

def spawn():
    if os.posix_spawn("/bin/true", ["true"], {}) < 0:
        raise OSError

ACTS = {
    "read a file": lambda: open("/etc/hostname"),
    "open a folder": lambda: os.open("/", os.O_RDONLY),
    "write a file": lambda: open("/tmp/hansa-jail-escape", "w"),
    "tcp socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "socket pair": socket.socketpair,
    "pipe": os.pipe,
    "second name of a descriptor": lambda: os.dup(0),
    "file in memory": lambda: os.memfd_create("x"),
    "fork": os.fork,
    "spawn": spawn,
    "run a program": lambda: subprocess.run(["/bin/true"]),
    "become a program": lambda: os.execv("/bin/true", ["true"]),
    "thread": lambda: threading.Thread(target=print).start(),
    "signal to the parent": lambda: os.kill(PARENT, 0),
    "ptrace the parent": lambda: call("ptrace", 16, PARENT, 0, 0),
    "read the parent's memory": lambda: call("process_vm_readv", PARENT, 0, 0, 0, 0, 0),
    "remove a file": lambda: os.unlink("/tmp/hansa-no-such-file"),
    "rename a file": lambda: os.rename("/tmp/hansa-no-such-file", "/tmp/hansa-no-such-file-2"),
    "look for a file": lambda: os.stat("/"),
    "list a folder": lambda: os.listdir("/"),
    "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    "io_uring": lambda: system_call(425, 1, 0),
    "open by openat2": lambda: system_call(437, -100, b"/etc/hostname", 0, 0),
    "descriptor of the parent": lambda: system_call(434, PARENT, 0),
    "bpf": lambda: system_call(321 if os.uname().machine == "x86_64" else 280, 0, 0, 0),
}

def outcomes():
    found = {}
    for name, act in ACTS.items():
        try:
            act()
        except (OSError, RuntimeError, ValueError) as error:
            found[name] = type(error).__name__
        else:
            found[name] = "DONE"
    return found
"""


def in_jail(enter: str, then: str = "print(json.dumps(outcomes()))") -> subprocess.CompletedProcess[str]:
    """A process like the candidate's that enters a jail and then does its worst."""
    script = f"import json\nPARENT = {os.getpid()}\n{ACTS}\nfrom hansa_client import jail\n{enter}\n{then}\n"
    # In a process of its own session, as the candidate's: what it tried to do to its group is its own.
    return subprocess.run(
        [sys.executable, "-I", "-c", script],
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=False,
    )


ENTER = "in_force = jail.enter(memory_bytes=2**28, cpu_seconds=60)"


# --- the jail ---------------------------------------------------------------------------------------------------------


@ON_LINUX
def test_process_in_jail_reaches_no_file_no_network_and_no_process():
    done = in_jail(ENTER, "print(json.dumps([in_force, outcomes()]))")
    in_force, outcomes = json.loads(done.stdout)
    assert in_force
    assert len(outcomes) == 26
    assert {name for name, outcome in outcomes.items() if outcome == "DONE"} == set(), done.stderr


@ON_LINUX
def test_the_same_acts_can_be_done_outside_the_jail():
    # Else the test above could pass because an act is impossible anyway.
    possible = {
        "read a file", "open a folder", "tcp socket", "unix socket", "socket pair", "pipe", "fork", "spawn",
        "run a program", "thread", "signal to the parent", "look for a file", "list a folder",
        "second name of a descriptor", "file in memory",
    }  # fmt: skip
    script = f"ACTS = {{name: ACTS[name] for name in {possible}}}\nMAIN = os.getpid()\nfound = outcomes()\n"
    done = in_jail(script, "print(json.dumps(found)) if os.getpid() == MAIN else os._exit(0)")
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {"DONE"}


def test_limits_alone_keep_files_and_sockets_closed():
    done = in_jail("jail.limit_resources(memory_bytes=2**28, cpu_seconds=60)", JUST_DESCRIPTORS)
    assert "DONE" not in json.loads(done.stdout).values()


@ON_LINUX
def test_filter_alone_keeps_everything_closed():
    done = in_jail("assert jail.filter_calls()")
    assert "DONE" not in json.loads(done.stdout).values()


@ON_LINUX
def test_filter_holds_for_threads_that_were_there_before():
    threads = textwrap.dedent("""
        ready, found = threading.Event(), []
        def late():
            ready.wait()
            try:
                open("/etc/hostname")
                found.append("DONE")
            except OSError as error:
                found.append(type(error).__name__)
        thread = threading.Thread(target=late)
        thread.start()
        assert jail.filter_calls()
        ready.set()
        thread.join()
        print(found)
    """)
    assert in_jail("", threads).stdout.strip() == "['PermissionError']"


@ON_LINUX
def test_memory_beyond_the_limit_is_not_given():
    allocate = textwrap.dedent("""
        kept = bytearray(2**26)
        try:
            kept = bytearray(2**29)
            print("DONE")
        except MemoryError:
            print("refused")
    """)
    assert in_jail(ENTER, allocate).stdout.strip() == "refused"


def test_computing_beyond_the_limit_is_ended():
    done = in_jail("jail.enter(memory_bytes=2**28, cpu_seconds=1)", "while True: pass")
    assert done.returncode in {-signal.SIGXCPU, -signal.SIGKILL}


JUST_DESCRIPTORS = textwrap.dedent("""
    opens = ["read a file", "open a folder", "write a file", "tcp socket", "unix socket", "socket pair", "pipe",
             "second name of a descriptor", "list a folder"]
    ACTS = {name: ACTS[name] for name in opens}
    print(json.dumps(outcomes()))
""")


def test_filter_is_not_claimed_on_a_machine_whose_calls_are_not_known(monkeypatch):
    monkeypatch.setattr(jail.platform, "machine", lambda: "riscv64")
    assert jail.filter_calls() is False
    os.close(os.open("/", os.O_RDONLY))


# --- real files -------------------------------------------------------------------------------------------------------


def inputs_of(finished, num_rows: int) -> Inputs:
    random, spec = np.random.default_rng(0), finished.parts.spec
    ids = [random.integers(0, embedding.num_ids, num_rows) for embedding in spec.embeddings]
    return Inputs(
        random.normal(size=(num_rows, spec.num_dense)).astype(np.float32), np.stack(ids, axis=1).astype(np.int32)
    )


@pytest.mark.parametrize("name", [FLOAT_NAME, INT8_NAME])
@pytest.mark.parametrize("num_rows", [0, 1, 5000])
def test_jailed_file_gives_the_same_bits_as_in_the_open(finished, name, num_rows):
    inputs, spec = inputs_of(finished, num_rows), finished.parts.spec
    expected = TfliteNetwork(finished.files[name], spec.num_dense, len(spec.embeddings)).logits(inputs)
    found = candidate_logits(finished.files[name], inputs)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"garbage" * 1000, bytes(10_000), DOUBLING])
def test_bytes_that_are_no_model_are_told_in_one_line(content):
    with pytest.raises(MerchantError, match="cannot be used") as told:
        candidate_logits(content, INPUTS)
    assert "\n" not in str(told.value)


def test_cut_and_damaged_files_give_finite_logits_or_one_line(finished):
    content, random = finished.files[FLOAT_NAME], np.random.default_rng(0)
    inputs = inputs_of(finished, 4)
    damaged = [content[: int(size)] for size in np.linspace(8, len(content) - 1, 6)]
    for _ in range(10):
        changed = bytearray(content)
        for place in random.integers(0, len(content), 30):
            changed[place] = int(random.integers(256))
        damaged.append(bytes(changed))
    refused = 0
    for bad in damaged:
        try:
            logits = candidate_logits(bad, inputs)
        except MerchantError:
            refused += 1
        else:
            assert logits.shape == (4,)
            assert np.isfinite(logits).all()
    assert refused >= 6


def test_file_of_other_inputs_is_refused(finished):
    with pytest.raises(MerchantError, match="the model takes float32"):
        candidate_logits(finished.files[FLOAT_NAME], INPUTS)


def test_the_file_that_is_run_first_is_the_smallest_one_there_is():
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tensors = []
    for name in (b"x", b"y"):
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.name, tensor.buffer = [1], schema.TensorType.FLOAT32, name, 0
        tensors.append(tensor)
    add = schema.OperatorT()
    add.inputs, add.outputs, add.opcodeIndex = [0, 0], [1], 0
    add.builtinOptionsType, add.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = tensors, [0], [1], [add]
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = schema.BuiltinOperator.ADD, 1
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    assert bytes(builder.Output()) == DOUBLING


# --- a process that was taken over, as its parent sees it -------------------------------------------------------------


@pytest.fixture
def taken_over(tmp_path, monkeypatch):
    """In place of the candidate's process, one that runs this script: the parent starts it and knows no better."""

    def install(script: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!{sys.executable} -I\nimport os, sys, time\n{textwrap.dedent(script)}\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))

    return install


def test_candidate_of_an_order_has_no_more_time_than_the_order(taken_over):
    taken_over("time.sleep(600)")
    logits, labels = np.zeros(len(INPUTS), np.float32), np.zeros(len(INPUTS), np.uint8)
    began = time.monotonic()
    for seconds in (0.5, -1.0):
        with pytest.raises(DeadlineError):
            compared(logits, np.zeros(4, np.uint8), INPUTS, labels, Halt(time.monotonic() + seconds))
    assert time.monotonic() - began < 30


def refusal(inputs: Inputs = INPUTS, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    with pytest.raises(MerchantError) as told:
        candidate_logits(b"a file", inputs, limits=limits)
    assert "\n" not in str(told.value)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 600
    return str(told.value)


@ON_LINUX
def test_process_gets_no_environment_no_descriptor_no_folder_and_no_session_of_its_parent(taken_over, monkeypatch):
    monkeypatch.setenv("HANSA_SECRET", "swordfish")
    taken_over("""
        names = sorted(os.environ) + sorted(os.listdir("/proc/self/fd"))
        print("R" + " ".join([*names, os.getcwd(), str(os.getsid(0) == os.getpid()), *sys.argv[1:]]), end="")
    """)
    secret, read_end = os.pipe()
    os.set_inheritable(read_end, True)
    try:
        told = refusal()
    finally:
        os.close(secret)
        os.close(read_end)
    # 3 is the folder that is being listed. LC_CTYPE is what Python sets for itself where there is no locale.
    words = [word for word in told.removeprefix("the candidate cannot be used: ").split() if word != "LC_CTYPE"]
    assert words == ["0", "1", "2", "3", "/", "True", "-I", "-m", "hansa_client.candidate_process"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("os.kill(os.getpid(), 11)", "end by SIGSEGV"),
        ("os.abort()", "end by SIGABRT"),
        ("sys.exit(7)", "end with status 7"),
        ("pass", "gave 0 bytes for 3 rows"),
        ("os.write(1, b'L' + bytes(11))", "gave 11 bytes for 3 rows"),
        ("os.write(1, b'L' + bytes(13))", "gave 13 bytes for 3 rows"),
        ("os.write(1, b'X' + bytes(12))", "gave 12 bytes for 3 rows"),
        ("os.write(1, b'L' + bytes(8) + bytes([0, 0, 192, 127]))", "not finite"),
        ("os.write(1, b'L' + bytes(8) + bytes([0, 0, 128, 255]))", "not finite"),
        ("os.write(1, b'L' + bytes(12)); os.kill(os.getpid(), 9)", "end by SIGKILL"),
        ("os.write(1, b'R\\x1b[2J\\nforged\\x9b line' + b'x' * 500)", "forged"),
        ("os.close(0)\nos.write(1, b'L')", "gave 0 bytes"),
    ],
)
def test_whatever_a_process_answers_is_one_line_and_no_score(taken_over, script, reason):
    taken_over(script)
    assert reason in refusal()


def test_process_that_died_before_it_read_anything_is_told_however_much_was_to_be_read(taken_over):
    taken_over("os.kill(os.getpid(), 9)")
    many = Inputs(np.zeros((400_000, 20), np.float32), np.zeros((400_000, 1), np.int32))
    assert "SIGKILL" in refusal(many)


def test_endless_answer_is_cut_off(taken_over):
    taken_over("""
        while True:
            os.write(1, b"L" * 65536)
    """)
    assert "not a float32 each" in refusal()


@pytest.mark.parametrize("last_words", ["", "os.write(1, b'L')"])
def test_process_that_hangs_is_ended(taken_over, tmp_path, last_words):
    taken_over(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{last_words}\ntime.sleep(1000)")
    limits = Limits(seconds=6.0)
    assert "did not answer within" in refusal(limits=limits)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
