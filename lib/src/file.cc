// SPDX-License-Identifier: MIT
// Small helpers for files, sysfs' above all.
#include "file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dmaprobe::file {

Fd& Fd::operator=(Fd&& other) noexcept {
    if (this != &other) {
        reset();
        fd_ = other.release();
    }
    return *this;
}

void Fd::reset() noexcept {
    if (fd_ >= 0)
        ::close(std::exchange(fd_, -1));
}

bool exists(const std::string& path) noexcept {
    return ::access(path.c_str(), F_OK) == 0;
}

Result<std::string> read(const std::string& path) {
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd)
        return std::unexpected(Error{errno, "open", path});
    std::string text;
    std::array<char, 4096> chunk{};
    for (;;) {
        const ssize_t got = ::read(fd.get(), chunk.data(), chunk.size());
        if (got == 0)
            return text;
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return std::unexpected(Error{errno, "read", path});
        }
        text.append(chunk.data(), static_cast<std::size_t>(got));
    }
}

std::optional<std::string> read_line(const std::string& path) {
    auto text = read(path);
    if (!text)
        return std::nullopt;
    while (!text->empty() && (text->back() == '\n' || text->back() == ' '))
        text->pop_back();
    return std::move(*text);
}

std::optional<unsigned long> read_number(const std::string& path) {
    const auto text = read_line(path);
    if (!text || text->empty())
        return std::nullopt;
    char* end = nullptr;
    errno = 0;
    const unsigned long value = std::strtoul(text->c_str(), &end, 0);
    if (errno != 0 || *end != '\0')
        return std::nullopt;
    return value;
}

Result<void> write(const std::string& path, std::string_view text) {
    const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd)
        return std::unexpected(Error{errno, "open", path});
    const ssize_t put = ::write(fd.get(), text.data(), text.size());
    if (put < 0)
        return std::unexpected(Error{errno, "write", path});
    if (static_cast<std::size_t>(put) != text.size())
        return std::unexpected(Error{EIO, "write", path});
    return {};
}

Result<void> replace(const std::string& path, std::string_view text) {
    const std::string dir = path.substr(0, path.rfind('/'));
    if (::mkdir(dir.c_str(), 0755) != 0 && errno != EEXIST)
        return std::unexpected(Error{errno, "mkdir", dir});
    const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!fd)
        return std::unexpected(Error{errno, "open", path});
    const ssize_t put = ::write(fd.get(), text.data(), text.size());
    if (put < 0 || static_cast<std::size_t>(put) != text.size())
        return std::unexpected(Error{put < 0 ? errno : ENOSPC, "write", path});
    return {};
}

Result<std::vector<std::string>> list(const std::string& path) {
    std::vector<std::string> found;
    DIR* dir = ::opendir(path.c_str());
    if (dir == nullptr)
        return std::unexpected(Error{errno, "opendir", path});
    while (const dirent* entry = ::readdir(dir)) {
        if (entry->d_name[0] != '.')
            found.emplace_back(entry->d_name);
    }
    ::closedir(dir);
    std::ranges::sort(found);
    return found;
}

std::vector<std::string> names(const std::string& path) {
    return list(path).value_or(std::vector<std::string>());
}

std::string link_name(const std::string& path) {
    std::array<char, 4096> target{};
    const ssize_t length = ::readlink(path.c_str(), target.data(), target.size());
    if (length <= 0)
        return {};
    const std::string_view text(target.data(), static_cast<std::size_t>(length));
    return std::string(text.substr(text.rfind('/') + 1));
}

std::string_view trim(std::string_view text) noexcept {
    constexpr std::string_view space = " \t\r\n";
    const auto first = text.find_first_not_of(space);
    if (first == std::string_view::npos)
        return {};
    return text.substr(first, text.find_last_not_of(space) - first + 1);
}

} // namespace dmaprobe::file
