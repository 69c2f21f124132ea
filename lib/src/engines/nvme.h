// SPDX-License-Identifier: MIT
// What NVM Express defines of a controller: registers, commands and completions, as far as the
// engine uses them (Base Specification 1.4 and later, and its NVM Command Set).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <endian.h>

#include <dmaprobe/types.h>

namespace dmaprobe::engines::nvm {

// Registers in BAR 0 (Base Specification, "Controller Properties").
inline constexpr std::uint64_t reg_cap = 0x00;
inline constexpr std::uint64_t reg_vs = 0x08;
inline constexpr std::uint64_t reg_intms = 0x0c;
inline constexpr std::uint64_t reg_cc = 0x14;
inline constexpr std::uint64_t reg_csts = 0x1c;
inline constexpr std::uint64_t reg_aqa = 0x24;
inline constexpr std::uint64_t reg_asq = 0x28;
inline constexpr std::uint64_t reg_acq = 0x30;
inline constexpr std::uint64_t reg_crto = 0x68;
inline constexpr std::uint64_t reg_doorbells = 0x1000;

inline constexpr std::uint32_t cc_enable = 1 << 0;
inline constexpr unsigned cc_page_shift = 7;
inline constexpr std::uint32_t cc_shutdown = 1 << 14;
inline constexpr std::uint32_t cc_shutdown_mask = 3 << 14;
inline constexpr std::uint32_t cc_entry_sizes = 6 << 16 | 4 << 20; // of 64 and of 16 bytes

inline constexpr std::uint32_t csts_ready = 1 << 0;
inline constexpr std::uint32_t csts_fatal = 1 << 1;
inline constexpr std::uint32_t csts_shutdown_mask = 3 << 2;
inline constexpr std::uint32_t csts_shutdown_done = 2 << 2;

inline constexpr std::uint32_t version_1_1 = 0x00010100;

enum class Admin : std::uint8_t {
    create_sq = 0x01,
    create_cq = 0x05,
    identify = 0x06,
    set_features = 0x09,
};
enum class Io : std::uint8_t { write = 0x01, read = 0x02, compare = 0x05 };

inline constexpr std::uint32_t identify_namespace = 0;
inline constexpr std::uint32_t identify_controller = 1;
inline constexpr std::uint32_t identify_active_namespaces = 2;
inline constexpr std::uint32_t feature_number_of_queues = 7;
inline constexpr Size identify_length(4096);

// Of one command: their number less one has 16 bits.
inline constexpr std::uint64_t most_blocks = 65536;

// Status: type and code of it (Base Specification, "Status Field").
inline constexpr unsigned status_data_transfer_error = 0x004;
inline constexpr unsigned status_compare_failure = 0x285;

/// A command: 16 words, little-endian.
struct Command {
    std::array<std::uint32_t, 16> words{};

    void set(unsigned word, std::uint32_t value) { words[word] = htole32(value); }
    void set64(unsigned word, std::uint64_t value) {
        set(word, static_cast<std::uint32_t>(value));
        set(word + 1, static_cast<std::uint32_t>(value >> 32));
    }
};
static_assert(sizeof(Command) == 64);

/// A completion.
struct Answer {
    std::array<std::uint32_t, 4> words{};
};
static_assert(sizeof(Answer) == 16);

inline std::uint16_t load16(std::span<const std::byte> from, std::size_t at) {
    std::uint16_t value = 0;
    std::memcpy(&value, from.data() + at, sizeof(value));
    return le16toh(value);
}

inline std::uint32_t load32(std::span<const std::byte> from, std::size_t at) {
    std::uint32_t value = 0;
    std::memcpy(&value, from.data() + at, sizeof(value));
    return le32toh(value);
}

inline std::uint64_t load64(std::span<const std::byte> from, std::size_t at) {
    std::uint64_t value = 0;
    std::memcpy(&value, from.data() + at, sizeof(value));
    return le64toh(value);
}

} // namespace dmaprobe::engines::nvm
