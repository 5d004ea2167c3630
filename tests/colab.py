"""The notebook where it will be run: in Colab, opened from GitHub, alone in an empty folder; and on a plain laptop.

    python tests/colab.py [--python python3.13] [--venv FOLDER] [SCENARIO ...]

makes (or reuses) a virtual environment with Colab's versions, and executes the notebook to its end in the smoke profile
in every scenario, with a stand-in for `google.colab` and a server on this machine for GitHub and Colab's list of
sessions. One line per scenario; exit status 1 if any failed. The first time it installs some gigabytes.
"""

import argparse
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "ViTGAN_CIFAR10.ipynb"
VERSIONS = """torch==2.11.0 torchvision==0.26.0 numpy==2.1.3 matplotlib==3.10.0 einops==0.8.2 scikit-learn==1.6.1 scipy==1.16.3
tqdm==4.67.3 safetensors==0.8.0 ipywidgets==7.7.1 ipython==7.34.0 nbformat==5.11.1 nbclient==0.10.4 ipykernel""".split()
DRIVE = '''"""google.colab.drive: a mount whose files lie in $STANDIN_DRIVE; with $STANDIN_LOST it is lost after a checkpoint."""
import os, pathlib, threading, time

def mount(mount_point):
    drive, mounted = pathlib.Path(os.environ["STANDIN_DRIVE"]), pathlib.Path(mount_point) / "MyDrive"
    mounted.parent.mkdir()
    mounted.symlink_to(drive)

    def lose():
        while not list(drive.glob("ViTGAN/*/checkpoint.pt")):
            time.sleep(0.05)
        mounted.unlink()

    if "STANDIN_LOST" in os.environ:
        threading.Thread(target=lose, daemon=True).start()
'''
FILES = '''"""google.colab.files: nobody is there to upload anything."""
def upload():
    raise TypeError("nothing was chosen")
'''
RUN = """import sys, nbformat, nbclient
notebook = nbformat.read("ViTGAN_CIFAR10.ipynb", 4)
try:
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
except nbclient.exceptions.CellExecutionError as error:
    sys.exit(f"{error.ename}: {error.evalue}")
finally:
    nbformat.write(notebook, sys.argv[1])
"""


# --------------------------------------------------------------------------------------------------------------- server


@contextmanager
def serve(answers):
    """A server on this machine for the dict `answers`: path to bytes, or to a function that returns them; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = answers.get(self.path)
            content = content() if callable(content) else content
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *details):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def sessions(path):
    """Colab's list of sessions for a notebook at `path`."""
    return json.dumps([{"path": f"fileId={quote(path)}", "name": "ViTGAN_CIFAR10.ipynb", "type": "notebook"}]).encode()


def colab_environment(address):
    """The variables that lead a notebook in Colab to the server at `address`."""
    return {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": address.rpartition(":")[2], "VITGAN_MIRROR": address}


# ---------------------------------------------------------------------------------------------------------- environment


def prepared(python, venv):
    """The python of a virtual environment with Colab's versions, made with `python` if it is not there yet."""
    inside = venv / "bin" / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", venv], check=True)
    check = ("import importlib.metadata as m, sys\n"
             "for name, _, version in (p.partition('==') for p in sys.argv[1:]): assert version in ('', m.version(name))")
    if subprocess.run([inside, "-c", check, *VERSIONS], stderr=subprocess.DEVNULL).returncode:
        print("installing", *VERSIONS, flush=True)
        subprocess.run([inside, "-m", "pip", "install", "-q", *VERSIONS], check=True)
    subprocess.run([inside, "-m", "pip", "uninstall", "-q", "-q", "-y", "torch-fidelity"], check=True)  # Colab has none
    return inside


def stand_in(folder):
    """A package google.colab below `folder`."""
    package = folder / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").write_text(DRIVE)
    (package / "files.py").write_text(FILES)
    return folder


def execute(python, content, environment, edits=()):
    """Run the notebook alone in `content`, its code changed by `edits`; returns (error or '', what its cells printed)."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        for old, new in edits:
            source = source.replace(old, new)
        cell["source"] = source
    content.mkdir()
    (content / NOTEBOOK.name).write_text(json.dumps(notebook), encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VITGAN_", "COLAB_", "KAGGLE_", "MPL"))}
    executed = content.parent / f"{content.name}.ipynb"
    done = subprocess.run([python, "-c", RUN, executed], cwd=content, capture_output=True, text=True,
                          env=clean | {"VITGAN_PROFILE": "smoke", "no_proxy": "127.0.0.1"} | environment)
    printed = [output.get("text", "") for cell in json.loads(executed.read_text())["cells"] if cell["cell_type"] == "code"
               for output in cell["outputs"] if output["output_type"] == "stream"]
    return done.stderr.strip().splitlines()[-1] if done.returncode else "", "".join("".join(text) for text in printed)


# ------------------------------------------------------------------------------------------------------------ scenarios


def require(fine, what):
    """AssertionError that says `what` unless `fine`."""
    if not fine:
        raise AssertionError(what)


def fork(run, folder):
    """Colab, opened from a branch of a fork, which alone has the files; Drive on; then a second session with its Drive."""
    printed = run("fork", edits=DRIVE_ON)
    content, kept = folder / "fork", folder / "Drive" / "ViTGAN" / "smoke-digits-scikit-learn"
    require((content / "helpers.py").read_bytes() == (ROOT / "helpers.py").read_bytes(), "another helpers.py")
    require((content / "assets" / "vitgan-16.safetensors").exists() and "left out: the trained" not in printed, "no weights")
    require({"checkpoint.pt", "generator.safetensors", "metrics.json", "samples"} == {p.name for p in kept.iterdir()}, "Drive")
    metrics = json.loads((kept / "metrics.json").read_text())
    require("k images" in printed and "images/s, " in printed and metrics["torch"].startswith("2.11.0"), "training or torch")
    again = run("again", edits=DRIVE_ON)
    require("k images" not in again and "out of reach" not in again, "the second session began anew")


def lost(run, folder):
    """Colab, the Drive's mount lost in the middle of training."""
    printed = run("lost", STANDIN_LOST="1", edits=DRIVE_ON)
    require(printed.count("is out of reach") == 1, "one warning")
    require((folder / "lost/runs/smoke-digits-scikit-learn/metrics.json").exists(), "no results")


def laptop(run, folder):
    """No google.colab; one edit leads to the repository; the Drive box ticked all the same."""
    printed = run("laptop", edits=[("ORG/REPO", "owner/kit"), *DRIVE_ON], PYTHONPATH="", COLAB_JUPYTER_IP=None)
    require(printed.count("Google Drive cannot be used") == 1, "one sentence on Drive")
    require((folder / "laptop" / "helpers.py").exists() and not (folder / "laptop" / "drive").exists(), "files")


SCENARIOS = {function.__name__: function for function in (fork, lost, laptop)}
DRIVE_ON = [("drive = False ", "drive = True ")]


def attempt(scenario, python):
    """Run a scenario in a temporary folder; returns whether it came to a good end, after printing its line."""
    start, files = time.monotonic(), {name: (ROOT / name).read_bytes() for name in ("helpers.py", "assets/vitgan-16.safetensors")}
    answers = {f"/{place}/{name}": content for place in ("someone/fork/my/branch", "owner/kit/main") for name, content in files.items()}
    answers["/api/sessions"] = sessions("https://github.com/someone/fork/blob/my/branch/ViTGAN_CIFAR10.ipynb")
    with tempfile.TemporaryDirectory() as folder, serve(answers) as address:
        folder = Path(folder)
        (folder / "Drive").mkdir()
        usual = colab_environment(address) | {"PYTHONPATH": str(stand_in(folder / "site")), "STANDIN_DRIVE": str(folder / "Drive")}

        def run(name, edits=(), **changes):
            environment = {key: value for key, value in (usual | changes).items() if value is not None}
            problem, printed = execute(python, folder / name, environment, edits)
            require(not problem, problem)
            return printed

        try:
            SCENARIOS[scenario](run, folder)
            problem = ""
        except AssertionError as error:
            problem = f": {error}"
    print(f"{scenario:8} {'FAILED' if problem else 'passed'} after {time.monotonic() - start:.0f} s{problem}", flush=True)
    return not problem


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--python", default=shutil.which("python3.13") or sys.executable, help="to make the environment with")
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "vitgan-colab", help="where it is kept")
    arguments = parser.parse_args()
    inside = prepared(arguments.python, arguments.venv)
    sys.exit(not all([attempt(scenario, inside) for scenario in arguments.scenarios]))
