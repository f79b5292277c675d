import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load

required_conan_version = ">=2.0"


class Heed(ConanFile):
    """Packages the working tree that this recipe lies in: conan create <heed>/.ci/packaging/conan/heed"""

    name = "heed"
    description = "Attention on the CPU: any score, any mask, one fused engine over Eigen"
    license = "MIT"
    topics = ("attention", "transformer", "eigen", "header-only")
    package_type = "header-library"
    settings = "os", "compiler", "build_type", "arch"
    options = {"safetensors": [True, False]}
    default_options = {"safetensors": False}
    no_copy_source = True

    @property
    def _tree(self):
        return os.path.join(self.recipe_folder, "..", "..", "..", "..")

    def set_version(self):
        header = load(self, os.path.join(self._tree, "include", "heed", "version.hpp"))
        parts = re.findall(r"#define HEED_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
        self.version = ".".join(parts)

    def export_sources(self):
        for pattern in ("include/heed/*", "LICENSE"):
            copy(self, pattern, src=self._tree, dst=self.export_sources_folder)

    def requirements(self):
        self.requires("eigen/[>=3.4 <6]")
        if self.options.safetensors:
            self.requires("nlohmann_json/[>=3.9 <4]")

    def validate(self):
        if self.settings.get_safe("compiler.cppstd"):
            check_min_cppstd(self, 20)

    def package_id(self):
        self.info.clear()

    def package(self):
        copy(self, "*.hpp", src=os.path.join(self.source_folder, "include"),
             dst=os.path.join(self.package_folder, "include"))
        copy(self, "LICENSE", src=self.source_folder,
             dst=os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "heed")
        self.cpp_info.set_property("cmake_target_name", "heed::heed")
        needs = {"core": ["eigen::eigen"]}
        if self.options.safetensors:
            needs["safetensors"] = ["core", "nlohmann_json::nlohmann_json"]
        for name, requires in needs.items():
            component = self.cpp_info.components[name]
            component.bindirs = []
            component.libdirs = []
            component.requires = requires
            component.set_property("cmake_target_name", f"heed::{name}")
