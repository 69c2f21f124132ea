// SPDX-License-Identifier: MIT
// IOMMU faults in the words of their drivers.
#include <dmaprobe/fault.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <format>
#include <span>
#include <utility>

#include "file.h"
#include "kmsg.h"

namespace dmaprobe {

std::string_view to_string(FaultAccess access) noexcept {
    switch (access) {
    case FaultAccess::unknown:
        return "unknown";
    case FaultAccess::read:
        return "read";
    case FaultAccess::write:
        return "write";
    }
    return "unknown";
}

bool Fault::is_from(const Bdf& device) const noexcept {
    if (!bdf)
        return true;
    Bdf mine = *bdf;
    if (!names_domain)
        mine.domain = device.domain;
    return mine == device;
}

bool Fault::is_from(std::span<const Bdf> requesters) const noexcept {
    return std::ranges::any_of(requesters, [this](const Bdf& one) { return is_from(one); });
}

namespace {

/// Reads a text from the left; each take says whether it was there.
class Scanner {
public:
    explicit Scanner(std::string_view text) : text_(text) {}

    /// Skip over everything up to and with `mark`.
    bool after(std::string_view mark) {
        const auto at = text_.find(mark);
        if (at == std::string_view::npos)
            return false;
        text_.remove_prefix(at + mark.size());
        return true;
    }
    bool skip(std::string_view literal) {
        if (!text_.starts_with(literal))
            return false;
        text_.remove_prefix(literal.size());
        return true;
    }
    /// All up to `mark`, and skip that too.
    std::optional<std::string_view> until(std::string_view mark) {
        const auto at = text_.find(mark);
        if (at == std::string_view::npos)
            return std::nullopt;
        const auto taken = text_.substr(0, at);
        text_.remove_prefix(at + mark.size());
        return taken;
    }
    std::optional<std::uint64_t> hex() {
        (void)skip("0x");
        return number(16);
    }
    std::optional<std::uint64_t> number(int base) {
        std::uint64_t value = 0;
        const auto [end, error] =
            std::from_chars(text_.data(), text_.data() + text_.size(), value, base);
        if (error != std::errc())
            return std::nullopt;
        text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
        return value;
    }
    [[nodiscard]] std::string_view rest() const { return text_; }

private:
    std::string_view text_;
};

Bdf from_requester_id(std::uint64_t id) noexcept {
    return {.domain = 0,
            .bus = static_cast<std::uint8_t>(id >> 8),
            .device = static_cast<std::uint8_t>((id >> 3) & 0x1f),
            .function = static_cast<std::uint8_t>(id & 7)};
}

/// VT-d, drivers/iommu/intel/dmar.c, dmar_fault_do_one():
///   DMAR: [DMA Write NO_PASID] Request device [0000:01:00.0] fault addr 0xfffff000
///   [fault reason 0x05] PTE Write access is not set                       (on one line)
/// Kernels before 6.14 or so leave the PCI domain out. With a PASID, "PASID 0x1" takes the place of
/// NO_PASID. Faults of interrupt remapping start with [INTR-REMAP] and are not of interest.
bool parse_vtd(std::string_view text, Fault& fault) {
    Scanner scan(text);
    if (!scan.after("DMAR: [DMA "))
        return false;
    if (scan.skip("Read"))
        fault.access = FaultAccess::read;
    else if (scan.skip("Write"))
        fault.access = FaultAccess::write;
    else
        return false;
    if (!scan.after("] Request device ["))
        return false;
    const auto device = scan.until("]");
    if (!device)
        return false;
    const auto bdf = Bdf::parse(*device);
    if (!bdf || !scan.skip(" fault addr "))
        return false;
    const auto addr = scan.hex();
    if (!addr)
        return false;
    fault.bdf = *bdf;
    fault.names_domain = std::ranges::count(*device, ':') == 2;
    fault.iova = Iova(*addr);
    if (scan.after("[fault reason ") && scan.after("]"))
        fault.reason = file::trim(scan.rest());
    return true;
}

/// AMD-Vi, drivers/iommu/amd/iommu.c, amd_iommu_report_page_fault(), behind "DRIVER BDF: " when the
/// device is known, and otherwise with the device inside:
///   AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0001 address=0xffdfe000 flags=0x0020]
///   AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:01:00.0 domain=0x0001 address=... flags=...]
/// A page fault of interrupt remapping is not of interest.
bool parse_amdvi(std::string_view text, Fault& fault) {
    constexpr std::uint64_t flag_interrupt = 0x008;
    constexpr std::uint64_t flag_present = 0x010;
    constexpr std::uint64_t flag_write = 0x020;
    Scanner scan(text);
    auto device = scan.until(": AMD-Vi: Event logged [IO_PAGE_FAULT domain=");
    if (device) {
        device->remove_prefix(device->rfind(' ') + 1);
    } else {
        if (!scan.after("AMD-Vi: Event logged [IO_PAGE_FAULT device="))
            return false;
        device = scan.until(" domain=");
        if (!device)
            return false;
    }
    const auto bdf = Bdf::parse(*device);
    if (!bdf || !scan.hex() || !scan.skip(" address="))
        return false;
    const auto addr = scan.hex();
    if (!addr || !scan.skip(" flags="))
        return false;
    const auto flags = scan.hex();
    if (!flags || !scan.skip("]"))
        return false;
    if (*bdf == Bdf{} && *addr == 0) {
        fault.reason = "IO_PAGE_FAULT; device and address were not reported";
        return true;
    }
    // QEMU again, of a device on the first bus.
    if (*addr == 0 && (*flags & flag_interrupt) != 0) {
        fault.bdf = *bdf;
        fault.reason = "IO_PAGE_FAULT; the address was not reported";
        return true;
    }
    if ((*flags & flag_interrupt) != 0)
        return false;
    fault.bdf = *bdf;
    fault.iova = Iova(*addr);
    fault.access = (*flags & flag_write) != 0 ? FaultAccess::write : FaultAccess::read;
    fault.reason = (*flags & flag_present) != 0 ? "IO_PAGE_FAULT: no permission"
                                                : "IO_PAGE_FAULT: not present";
    return true;
}

/// virtio-iommu, drivers/iommu/virtio-iommu.c, viommu_fault_handler():
///   virtio_iommu virtio0: page fault from EP 256 at 0xffdfe000 [W]
///   virtio_iommu virtio0: domain fault from EP 256
bool parse_virtio(std::string_view text, Fault& fault) {
    Scanner scan(text);
    if (!scan.after("virtio_iommu ") || !scan.after(": "))
        return false;
    const auto reason = scan.until(" fault from EP ");
    const auto endpoint = scan.number(10);
    if (!reason || reason->contains(' ') || !endpoint)
        return false;
    if (*endpoint <= 0xffff) {
        fault.bdf = from_requester_id(*endpoint);
        fault.names_domain = false;
    }
    fault.reason = std::string(*reason) + " fault";
    if (scan.rest().empty())
        return true;
    if (!scan.skip(" at "))
        return false;
    const auto addr = scan.hex();
    if (!addr || !scan.skip(" ["))
        return false;
    fault.iova = Iova(*addr);
    if (scan.rest().starts_with('R'))
        fault.access = FaultAccess::read;
    else if (scan.rest().starts_with('W'))
        fault.access = FaultAccess::write;
    return true;
}

/// RISC-V, drivers/iommu/riscv/iommu.c, riscv_iommu_fault(); the cause is a number of the
/// specification's table "Fault record CAUSE field encodings":
///   riscv_iommu_pci 0000:00:03.0: Fault 15 devid: 0x100 iotval: ffdfe010 iotval2: 0
bool parse_riscv(std::string_view text, Fault& fault) {
    Scanner scan(text);
    if (!scan.after(": Fault "))
        return false;
    const auto cause = scan.number(10);
    if (!cause || !scan.skip(" devid: 0x"))
        return false;
    const auto device = scan.hex();
    if (!device || !scan.skip(" iotval: "))
        return false;
    const auto iotval = scan.hex();
    if (!iotval || !scan.skip(" iotval2: ") || !scan.hex() || !scan.rest().empty())
        return false;
    if (*device <= 0xffff) {
        fault.bdf = from_requester_id(*device);
        fault.names_domain = false;
    }
    fault.reason = std::format("cause {}", *cause);
    constexpr std::uint64_t last_of_an_address = 23;
    if (*cause > last_of_an_address)
        return true;
    fault.iova = Iova(*iotval);
    switch (*cause) {
    case 5: // access faults, page faults and guest page faults: of loads
    case 13:
    case 21:
        fault.access = FaultAccess::read;
        break;
    case 7: // and of stores
    case 15:
    case 23:
        fault.access = FaultAccess::write;
        break;
    default:
        break;
    }
    return true;
}

struct Parser {
    std::string_view platform;
    bool (*parse)(std::string_view text, Fault& fault);
};

/// One for each platform that reports a fault in one record: another one is a function and a line
/// here.
constexpr std::array parsers{
    Parser{"vt-d", parse_vtd},
    Parser{"amd-vi", parse_amdvi},
    Parser{"virtio-iommu", parse_virtio},
    Parser{"riscv", parse_riscv},
};

/// What SMMUv3's specification calls an event (IHI 0070, "Event records").
std::string smmu_event_name(std::uint64_t id) {
    switch (id) {
    case 0x02:
        return "C_BAD_STREAMID";
    case 0x03:
        return "F_STE_FETCH";
    case 0x04:
        return "C_BAD_STE";
    case 0x06:
        return "F_STREAM_DISABLED";
    case 0x08:
        return "C_BAD_SUBSTREAMID";
    case 0x09:
        return "F_CD_FETCH";
    case 0x0a:
        return "C_BAD_CD";
    case 0x10:
        return "F_TRANSLATION";
    case 0x11:
        return "F_ADDR_SIZE";
    case 0x12:
        return "F_ACCESS";
    case 0x13:
        return "F_PERMISSION";
    default:
        return std::format("event {:#04x}", id);
    }
}

/// The words of an event as a fault. Only the last four of the events above have an address.
void decode_smmu(std::span<const std::uint64_t> words, Fault& fault) {
    const std::uint64_t id = words[0] & 0xff;
    fault.bdf = from_requester_id(words[0] >> 32 & 0xffff);
    fault.names_domain = false;
    fault.reason = smmu_event_name(id);
    fault.platform = "smmuv3";
    if (id < 0x10 || id > 0x13)
        return;
    fault.iova = Iova(words[2]);
    fault.access = (words[1] >> 35 & 1) != 0 ? FaultAccess::read : FaultAccess::write;
}

} // namespace

/// SMMUv3, drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, arm_smmu_dump_raw_event():
///   arm-smmu-v3 9050000.smmuv3: event 0x10 received:
///   arm-smmu-v3 9050000.smmuv3: <tab>0x0000010000000010              (four of these)
/// and arm_smmu_dump_event() of newer kernels, which says the same in words, and names the device:
///   arm-smmu-v3 9050000.smmuv3: event: F_TRANSLATION client: 0000:01:00.0 sid: 0x100 ...
/// Other records may come in between.
bool FaultParser::take_smmu(std::string_view text, std::chrono::microseconds time,
                            std::deque<Fault>& faults) {
    constexpr std::size_t nr_words = 4;
    const auto driver = text.find("arm-smmu-v3 ");
    if (driver == std::string_view::npos)
        return false;
    Scanner scan(text.substr(driver));
    const auto smmu = scan.until(": ");
    if (!smmu)
        return false;
    if (scan.rest().starts_with("event 0x") && scan.rest().ends_with(" received:")) {
        event_.emplace();
        event_->smmu = *smmu;
        event_->fault.time = time;
        event_->fault.raw = text;
        return true;
    }
    if (scan.skip("event: ")) {
        const auto name = scan.until(" client: ");
        const auto client = scan.until(" sid: ");
        if (!name || !client)
            return false;
        if (const auto bdf = Bdf::parse(*client);
            bdf && !faults.empty() && faults.back().raw.contains(*smmu)) {
            faults.back().bdf = *bdf;
            faults.back().names_domain = true;
        }
        return true;
    }
    // /dev/kmsg shows a tab by its code.
    if (!event_ || event_->smmu != *smmu || (!scan.skip("\\x09") && !scan.skip("\t")))
        return false;
    const auto word = scan.hex();
    if (!word || !scan.rest().empty()) {
        event_.reset();
        return false;
    }
    event_->words.push_back(*word);
    event_->fault.raw += std::format(" {:#018x}", *word);
    if (event_->words.size() < nr_words)
        return true;
    decode_smmu(event_->words, event_->fault);
    faults.push_back(std::move(event_->fault));
    event_.reset();
    return true;
}

std::string_view record_text(std::string_view record, std::chrono::microseconds& time) {
    std::string_view text = record.substr(0, record.find('\n'));
    const auto head = text.substr(0, text.find(';'));
    if (head.size() == text.size() || head.empty() ||
        head.find_first_not_of("0123456789,-+abcdefghijklmnopqrstuvwxyz=") !=
            std::string_view::npos)
        return text;
    Scanner scan(head);
    if (scan.after(",") && scan.after(","))
        time = std::chrono::microseconds(scan.number(10).value_or(0));
    text.remove_prefix(head.size() + 1);
    return text;
}

bool FaultParser::take(std::string_view record, std::deque<Fault>& faults) {
    std::chrono::microseconds time{0};
    const std::string_view text = record_text(record, time);
    for (const Parser& parser : parsers) {
        Fault fault;
        if (!parser.parse(text, fault))
            continue;
        fault.time = time;
        fault.platform = parser.platform;
        fault.raw = text;
        faults.push_back(std::move(fault));
        return true;
    }
    return take_smmu(text, time, faults);
}

std::optional<Fault> parse_fault(std::string_view record) {
    std::deque<Fault> faults;
    FaultParser().take(record, faults);
    return faults.empty() ? std::nullopt : std::optional(std::move(faults.front()));
}

} // namespace dmaprobe
