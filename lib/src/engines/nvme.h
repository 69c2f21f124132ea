// SPDX-License-Identifier: MIT
// What NVM Express defines of a controller: registers, commands and completions, as far as the
// engine uses them (Base Specification 1.4 and later, and its NVM Command Set).
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
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

/// CAP, "Controller Capabilities".
class Capabilities {
public:
    explicit constexpr Capabilities(std::uint64_t cap) : cap_(cap) {}

    /// Whether nothing answers at the registers.
    [[nodiscard]] constexpr bool none() const { return cap_ == ~std::uint64_t{0}; }
    /// CSS: whether it has the NVM command set.
    [[nodiscard]] constexpr bool has_nvm_commands() const { return (cap_ >> 37 & 1) != 0; }
    /// MQES: entries that a queue has at most.
    [[nodiscard]] constexpr std::uint32_t queue_entries() const {
        return static_cast<std::uint32_t>(cap_ & 0xffff) + 1;
    }
    /// DSTRD: bytes from one doorbell to the next.
    [[nodiscard]] constexpr std::uint32_t doorbell_stride() const {
        return 4U << (cap_ >> 32 & 0xf);
    }
    /// MPSMIN: the smallest of its pages.
    [[nodiscard]] constexpr Size page() const {
        return Size(std::uint64_t{1} << (12 + (cap_ >> 48 & 0xf)));
    }
    /// CRMS: whether CRTO says how long it takes to be ready.
    [[nodiscard]] constexpr bool has_crto() const { return (cap_ >> 59 & 1) != 0; }
    /// TO: how long it takes to stop.
    [[nodiscard]] constexpr std::chrono::milliseconds stop_within() const {
        return std::chrono::milliseconds(500) * ((cap_ >> 24 & 0xff) + 1);
    }
    /// TO, or CRTO.CRWMT where that is longer: how long it takes to be ready.
    [[nodiscard]] constexpr std::chrono::milliseconds ready_within(std::uint32_t crto) const {
        const std::uint32_t crwmt = has_crto() ? crto & 0xffff : 0;
        return std::max<std::chrono::milliseconds>(stop_within(),
                                                   std::chrono::milliseconds(500) * crwmt);
    }

private:
    std::uint64_t cap_;
};

/// How long a shutdown may take: as Linux has it, what the controller says (RTD3 Entry Latency, in
/// microseconds), but 5 seconds at least and a minute at most.
constexpr std::chrono::milliseconds shutdown_within(std::uint32_t rtd3e) {
    using namespace std::chrono;
    return std::clamp<milliseconds>(ceil<milliseconds>(microseconds(rtd3e)), seconds(5),
                                    seconds(60));
}

/// Bytes of a queue, which starts at a page of the controller: coherent memory is aligned to its
/// length.
constexpr Size queue_length(Size page, std::uint32_t entries, std::size_t entry) {
    return std::max(page, Size(entries * entry));
}

/// What one command moves at most, in whole blocks: by MDTS (a power of two of pages; 0: no limit),
/// by a list of PRPs of one page, and by NLB, the number of blocks less one, which has 16 bits. 0
/// when not even one block can be moved.
constexpr Size max_transfer(Size page, unsigned mdts, Size block) {
    Size most = std::min(page * (page.value() / sizeof(std::uint64_t)), block * 65536);
    if (mdts != 0 && mdts < 32)
        most = std::min(most, page * (std::uint64_t{1} << mdts));
    return Size(most.value() & ~(block.value() - 1));
}

} // namespace dmaprobe::engines::nvm
