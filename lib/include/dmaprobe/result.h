// SPDX-License-Identifier: MIT
// Errors as values: what every call of the library that can fail gives back.
#pragma once

#include <expected>
#include <format>
#include <iosfwd>
#include <string>
#include <string_view>

namespace [[gnu::visibility("default")]] dmaprobe {

/// Why a call failed. Plain data: it can be copied, kept and compared.
struct Error {
    /// An errno value, as the kernel answered it or, for what the library refuses by itself, the
    /// one that the kernel would have used. The legal values of each command are in
    /// `<linux/dmaprobe.h>`.
    int code = 0;

    /// The operation that failed, for example "iova_link" or "open". It points to static storage.
    std::string_view op;

    /// What helps to understand it: a path, a reason, the remedy. May be empty.
    std::string detail;

    /// One line for a person: the operation, the detail (or, without one, the text of the errno
    /// value) and the errno's name. No newline.
    [[nodiscard]] std::string message() const;

    /// Equal when code, operation and detail are.
    bool operator==(const Error&) const = default;
};

/// Print message().
std::ostream& operator<<(std::ostream& out, const Error& error);

/// The name of an errno value, such as "EINVAL"; its number when libc knows no name.
[[nodiscard]] std::string errno_name(int code);

/// What a call that can fail gives back. No function of this library throws because of input, the
/// kernel's answers or the device; exhausted memory still raises `std::bad_alloc`.
template <class T>
using Result = std::expected<T, Error>;

} // namespace dmaprobe

/// Formats as Error::message().
template <>
struct std::formatter<dmaprobe::Error> : std::formatter<std::string_view> {
    /// Called by std::format.
    template <class Context>
    auto format(const dmaprobe::Error& error, Context& context) const {
        return std::formatter<std::string_view>::format(error.message(), context);
    }
};
