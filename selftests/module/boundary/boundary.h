/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of the boundary share. The module promises that a caller can hurt
 * nothing; these tests are hostile callers, and look at what it does to others: other
 * users' sessions, the machine's memory, its time, and the kernel log.
 */
#ifndef SELFTESTS_BOUNDARY_H
#define SELFTESTS_BOUNDARY_H

#include "support/fixture.h"
#include "support/system.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <vector>

namespace selftest {

/* Users without privileges. */
inline constexpr uid_t some_user = 1000;
inline constexpr uid_t another_user = 2000;

/*
 * Call @act in a thread that has become @uid, without groups or capabilities, and wait
 * for it. What it opens belongs to that user. Assertions work in it.
 */
void as_user(uid_t uid, const std::function<void()>& act);

/* Anybody can open the node, until this ends. */
class OpenNode {
public:
    explicit OpenNode(const std::string& bdf);
    OpenNode(const OpenNode&) = delete;
    OpenNode& operator=(const OpenNode&) = delete;
    ~OpenNode();

private:
    std::string path_;
    struct stat had_ = {};
};

/* The command register of a function's config space, as root has it. */
uint16_t command_of(const std::string& bdf);
void set_command(const std::string& bdf, unsigned value);

/* The program's RLIMIT_MEMLOCK, put back at the end. */
class LockedMemory {
public:
    explicit LockedMemory(uint64_t bytes);
    LockedMemory(const LockedMemory&) = delete;
    LockedMemory& operator=(const LockedMemory&) = delete;
    ~LockedMemory();

private:
    rlimit had_ = {};
};

/* A file of /proc or /sys that holds a value, or a choice such as "one [two]"; put back at the end.
 */
class Setting {
public:
    Setting(std::string path, const std::string& value);
    Setting(const Setting&) = delete;
    Setting& operator=(const Setting&) = delete;
    ~Setting();

    /* 0 or errno: whether the value was taken. */
    int error() const { return error_; }

private:
    std::string path_;
    std::string had_;
    int error_ = 0;
};

/* What the kernel logs from now on. */
class KernelLog {
public:
    KernelLog();
    /*
     * The kernel's lines since then, or since the last call, that come from dmaprobe, from
     * what it calls, or from a checker of the kernel.
     */
    std::string news();

private:
    Fd kmsg_;
};

/* Whether the kernel checks itself, which takes it fifty times as long. */
inline const bool checkers =
    exists("/sys/kernel/debug/dma-api") || exists("/sys/kernel/debug/kmemleak");

/* A line of /proc/meminfo in bytes; -1 when there is none. */
int64_t meminfo(std::string_view name);

/* How long it takes. */
std::chrono::milliseconds time_of(const std::function<void()>& act);

/*
 * Two functions of one slot, of the device's kind, both bound to dmaprobe until this ends.
 * why() says why there are none.
 */
class TwoFunctions {
public:
    explicit TwoFunctions(const std::string& bdf);

    const std::string& why() const { return why_; }
    const std::string& first() const { return first_; }
    const std::string& second() const { return second_; }

private:
    std::string why_;
    std::string first_;
    std::string second_;
    std::optional<KeepDriver> keep_first_;
    std::optional<KeepDriver> keep_second_;
};

/* The largest length, from @most down by halves, for which @make answers 0; or 0. */
uint64_t largest(uint64_t most, const std::function<int(uint64_t)>& make);

/* The usual calls, with all that these tests seldom name left out. 0 or errno. */
int map_range(const Raw& s, dmaprobe_map& op, const Buffer& b, uint64_t length);
/* Of pieces that are each contiguous and aligned to their size. */
int scattered(const Raw& s, Buffer& out, uint64_t length, uint64_t piece);

/*
 * Mappings of a buffer's first page, @count of them, made by runs. With @made, as many as a
 * slow machine makes in 15 s, and that is how many they are. 0 or errno.
 */
int map_often(const Raw& session, const Buffer& buffer, size_t count, size_t* made = nullptr,
              std::vector<uint32_t>* ids = nullptr);

} // namespace selftest

#endif
