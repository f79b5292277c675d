import os

from conan import ConanFile
from conan.tools.files import copy


class SystemEigen(ConanFile):
    """Eigen as the system has it, under the name that heed's recipe asks for: for trying that recipe
    where no remote can be reached. EIGEN names the directory of the headers."""

    name = "eigen"
    version = "3.4.0"
    package_type = "header-library"

    def package(self):
        headers = os.environ.get("EIGEN", "/usr/include/eigen3")
        for directory in ("Eigen", "unsupported"):
            copy(self, f"{directory}/*", src=headers,
                 dst=os.path.join(self.package_folder, "include", "eigen3"))

    def package_info(self):
        self.cpp_info.includedirs = [os.path.join("include", "eigen3")]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "Eigen3")
        self.cpp_info.set_property("cmake_target_name", "Eigen3::Eigen")
