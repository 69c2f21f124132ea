/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests do to the machine around the device: sysfs, modules, processes. All
 * of it is put back by destructors.
 */
#ifndef SELFTESTS_SYSTEM_H
#define SELFTESTS_SYSTEM_H

#include <chrono>
#include <cstdint>
#include <functional>
#include <sched.h>
#include <string>
#include <sys/types.h>
#include <vector>

namespace selftest {

inline constexpr char driver_name[] = "dmaprobe";

/* A file's contents without the last newline; empty when it cannot be read. */
std::string read_text(const std::string& path);
/* Write one text in one call, as sysfs wants it. 0 or errno. */
int write_text(const std::string& path, const std::string& text);
bool exists(const std::string& path);

std::string pci_path(const std::string& bdf);
/* The driver of a PCI function; empty without one. */
std::string driver_of(const std::string& bdf);
/* Through sysfs, not through the library. 0 or errno. */
int unbind_driver(const std::string& bdf);
/* Ask for a driver, and wait for the node when that is dmaprobe's. 0 or errno. */
int probe_driver(const std::string& bdf);

/* The functions of the device's kind in a group that has two of them or more; empty: none has. */
std::vector<std::string> group_of_like(const std::string& bdf);

/* Unload without waiting for users. 0 or errno. */
int remove_module(const char* name);
bool module_loaded();
/* Load with modprobe. */
bool load_module();

/* Puts back the driver and the override that a function has now, module included. */
class KeepDriver {
public:
    explicit KeepDriver(std::string bdf);
    KeepDriver(const KeepDriver&) = delete;
    KeepDriver& operator=(const KeepDriver&) = delete;
    ~KeepDriver() { restore(); }

    bool restore();

private:
    std::string bdf_;
    std::string driver_;
    std::string override_;
    bool module_;
};

/* Keeps the thread, and the children that it makes, on the CPU that it is on. */
class OneCpu {
public:
    OneCpu();
    OneCpu(const OneCpu&) = delete;
    OneCpu& operator=(const OneCpu&) = delete;
    ~OneCpu();

private:
    cpu_set_t had_;
};

/* User pages that are pinned in the whole machine; nobody else pins in the lab. */
int64_t pinned_pages();

/*
 * What the kernel's own records say that a device still has: mappings, where the
 * kernel keeps book of them (CONFIG_DMA_API_DEBUG), and pools. Empty when it has none.
 */
std::string dma_in_use(const std::string& bdf);

/* How a process ended, and what it said. */
struct Outcome {
    int code = -1;     /* exit code; -1 when it did not exit by itself */
    int signal = 0;    /* that ended it */
    bool late = false; /* it was killed at its deadline */
    std::string out;
    std::string err;
};

/* Run a program found in PATH. Its stdin is empty. */
Outcome run(const std::vector<std::string>& argv,
            std::chrono::milliseconds deadline = std::chrono::seconds(30),
            const std::function<void()>& in_child = {});

/* Whether a child ended in time; its wait status. */
bool wait_for_child(pid_t child, std::chrono::milliseconds timeout, int& status);

} // namespace selftest

#endif
