/* SPDX-License-Identifier: GPL-2.0-only */
/* The BARs of a PCI function, as sysfs shows them. */
#ifndef SELFTESTS_BARS_H
#define SELFTESTS_BARS_H

#include "system.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <string>

namespace selftest {

/* include/linux/ioport.h */
inline constexpr uint64_t resource_io = 0x100;
inline constexpr uint64_t resource_mem = 0x200;

struct Bar {
    uint64_t start = 0;
    uint64_t end = 0;
    uint64_t flags = 0;

    bool memory() const { return flags & resource_mem && start; }
    uint64_t size() const { return end - start + 1; }
};

inline std::array<Bar, 6> bars_of(const std::string& bdf) {
    std::ifstream file(pci_path(bdf) + "/resource");
    std::array<Bar, 6> bars;

    for (Bar& bar : bars)
        file >> std::hex >> bar.start >> bar.end >> bar.flags;
    EXPECT_TRUE(file) << "cannot read the device's resources";
    return bars;
}

} // namespace selftest

#endif
