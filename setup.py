"""A thin driver of CMakeLists.txt, which holds every source, flag and architecture."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds every library with CMake and Ninja; ATROUSOPS_BUILD=none leaves them out."""

    def run(self):
        if os.environ.get("ATROUSOPS_BUILD", "auto") == "none":
            self.extensions = []
            return
        # setuptools clears `inplace` while it runs, also for an editable install.
        self.into_source = bool(self.inplace) or getattr(self, "editable_mode", False)
        super().run()

    def build_extension(self, ext):
        work = ROOT / "build" / f"cp{sys.version_info.major}{sys.version_info.minor}"
        work.mkdir(parents=True, exist_ok=True)
        # cmake and ninja may be the wheels beside this Python rather than the system's.
        env = dict(os.environ, PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        configure = ["cmake", "-S", ROOT, "-B", work, "-G", "Ninja"]
        configure += [f"-DPython3_EXECUTABLE={sys.executable}", f"-DATROUSOPS_OUTPUT_DIR={ROOT / 'atrousops'}"]
        # Named each time, or CMake would remember an earlier build's.
        configure += [f"-DATROUSOPS_CUDA={os.environ.get('ATROUSOPS_CUDA', 'AUTO')}"]
        configure += os.environ.get("ATROUSOPS_CMAKE_ARGS", "").split()
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", work, *(["-v"] if self.verbose > 1 else [])], check=True, env=env)
        if not self.into_source:
            # What this build made, and no library that another has left there or beside the sources.
            package = Path(self.build_lib).resolve() / "atrousops"
            shutil.rmtree(package / "lib", ignore_errors=True)
            subprocess.run(["cmake", "--install", work, "--prefix", package], check=True, env=env)

    def copy_extensions_to_source(self):
        """CMake has put them there already."""

    def get_output_mapping(self):
        """Nothing is left for setuptools to copy."""
        return {}


# A wheel with CUDA in it is a version of its own, such as 0.1.0+cu130.
local = os.environ.get("ATROUSOPS_LOCAL_VERSION")
setup(
    ext_modules=[Extension("atrousops._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    options={"egg_info": {"tag_build": f"+{local}"}} if local else {},
)
