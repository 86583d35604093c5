"""Child processes end with their parent, and a process that is told to end does so in good order."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from hansa_common import children

# Waits for its parent as the trainer and the node do, and ends by itself when it gets SIGTERM.
CHILD = textwrap.dedent("""
    import signal, sys, threading
    from hansa_common.children import wait_for_end_of_parent
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    def watch():
        wait_for_end_of_parent()
        print("the parent has ended", flush=True)
        stop.set()
    threading.Thread(target=watch, daemon=True).start()
    print("ready", flush=True)
    stop.wait()
""")


def test_child_that_waits_for_its_parent_ends_with_code_0_when_told_to(tmp_path):
    log = tmp_path / "log"
    with children.running("a child", [sys.executable, "-c", CHILD], os.environ, log=log) as child:
        while "ready" not in log.read_text():
            assert child.process.poll() is None, log.read_text()
    assert child.process.returncode == 0
    assert log.read_text() == "ready\n"


def test_child_notices_the_end_of_its_parent(tmp_path):
    parent = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from hansa_common import children
        log = Path(sys.argv[1])
        with children.running("a child", [sys.executable, "-c", {CHILD!r}], os.environ, log=log) as child:
            while "ready" not in log.read_text():
                pass
            print(child.process.pid, flush=True)
            os._exit(0)
    """)
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", parent, log], check=True, capture_output=True, timeout=60)
    while "the parent has ended" not in log.read_text():
        pass


def test_process_that_ends_with_its_parent_does_so_as_if_it_was_told_to(tmp_path):
    script = textwrap.dedent("""
        import signal, sys
        from hansa_common.children import end_with_parent
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        end_with_parent()
        print("ready", flush=True)
        signal.pause()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        # As when the parent is killed: the operating system closes its end.
        child.stdin.close()
        assert child.wait(60) == 7


def test_process_that_ends_with_its_starter_does_so_while_its_main_thread_waits_for_another():
    waiting = textwrap.dedent("""
        import os, threading
        from hansa_common.children import end_with_starter
        end_with_starter()
        print("ready", flush=True)
        threading.Event().wait()
    """)
    starting = textwrap.dedent(f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {waiting!r}], stdin=subprocess.DEVNULL, start_new_session=True)
        sys.stdin.readline()
    """)
    with subprocess.Popen([sys.executable, "-c", starting], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout.readline() == b"ready\n"
        starter.kill()
        # Nobody holds the other end any more.
        assert starter.stdout.read() == b""
