// SPDX-License-Identifier: MIT
// Small helpers for files, sysfs' above all.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dmaprobe/result.h>

namespace dmaprobe::file {

/// A file descriptor that closes itself.
class Fd {
public:
    Fd() noexcept = default;
    explicit Fd(int fd) noexcept : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept;
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    ~Fd() { reset(); }

    void reset() noexcept;
    [[nodiscard]] int get() const noexcept { return fd_; }
    [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }
    explicit operator bool() const noexcept { return fd_ >= 0; }

private:
    int fd_ = -1;
};

/// Whether the path leads somewhere.
bool exists(const std::string& path) noexcept;
/// All of a text file. The detail of an error is the path.
Result<std::string> read(const std::string& path);
/// All of a text file without the white space at its end; nothing when it cannot be read.
std::optional<std::string> read_line(const std::string& path);
/// A number in C's notation; nothing when there is none.
std::optional<unsigned long> read_number(const std::string& path);
/// Write a text with one write(), as sysfs wants it.
Result<void> write(const std::string& path, std::string_view text);
/// Make a file with this text, or put it in place of what the file held. Its directory is made too.
Result<void> replace(const std::string& path, std::string_view text);
/// Names in a directory, without dot entries, sorted.
Result<std::vector<std::string>> list(const std::string& path);
/// The same; empty when it cannot be read.
std::vector<std::string> names(const std::string& path);
/// Last part of where a symbolic link leads; empty when it is none.
std::string link_name(const std::string& path);
/// Text without white space at both ends.
std::string_view trim(std::string_view text) noexcept;

} // namespace dmaprobe::file
