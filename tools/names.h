// SPDX-License-Identifier: GPL-2.0-only
// Names of PCI ids, from the file pci.ids of the hwdata project, where this machine has it.
#pragma once

#include <string>

#include <dmaprobe/pci.h>

namespace tool {

/// What pci.ids calls a device; empty where it has no name, or where there is no such file.
struct Names {
    std::string vendor;
    std::string device;
    std::string class_name; ///< of the subclass, or of the class where that has no name
};

/// The names of a device's ids. The file is that of $DMAPROBE_PCI_IDS, or the first that exists of
/// those in hwdata's usual places; it is read once.
Names names_of(const dmaprobe::PciDevice& device);

/// "class: vendor device", as far as there are names.
std::string names_text(const Names& names);

} // namespace tool
