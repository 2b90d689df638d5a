"""Start the Triton server from nvidia-pytriton's wheel, without a container.

python examples/triton_server.py MODELS [TRITONSERVER OPTIONS...]

The server runs on the CPU and has only the python backend. Write MODELS with `dsd-trt triton
--engine python`.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
TRITON = SITE / "pytriton" / "tritonserver"


def command_line(
    models: Path, backends: Path, options: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Command that starts the server.

    Args:
        models: folder of the model repository.
        backends: folder to create for the backend and this Python's stub of it.
        options: additional options of tritonserver.

    Returns:
        The command and its environment variables.
    """
    shutil.copytree(TRITON / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = TRITON / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    libraries = [str(SITE / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    environment = {
        # Some backends have their own ONNX Runtime; this disables its telemetry.
        "ORT_DISABLE_TELEMETRY": "1",
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        # Models run in the environment of the first python3 on the path.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        str(TRITON / "bin" / "tritonserver"),
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        f"--cache-directory={TRITON / 'caches'}",
        "--cache-config=local,size=67108864",
        *options,
    ]
    return command, environment


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    if not TRITON.is_dir():
        sys.exit(f"no Triton server in {TRITON}: pip install --no-deps nvidia-pytriton")
    scratch = Path(tempfile.mkdtemp(prefix="triton-"))
    command, environment = command_line(Path(sys.argv[1]), scratch / "backends", sys.argv[2:])
    os.execve(command[0], command, environment)
