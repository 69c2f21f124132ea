// SPDX-License-Identifier: MIT
// NVMe controllers: a small driver with one queue for administration and one for I/O.
//
// NVM Express Base Specification 1.4 and later, and its NVM Command Set. Transfers are Read and
// Compare of the first namespace that is active, so that the medium stays what it is; with
// EngineOptions::allow_write they are Read and Write of the blocks named there. The queues lie in
// coherent memory of the DMA API, like all that the device is given.
#include "nvme.h"
#include "../builtin_engines.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <format>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <endian.h>

#include <dmaprobe/alloc.h>

namespace dmaprobe::engines {

namespace {

using namespace nvm;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// As long as Linux waits: nvme_io_timeout and nvme_admin_timeout.
constexpr std::chrono::seconds io_deadline(30);
constexpr std::chrono::seconds admin_deadline(60);

// Vector 0 is that of the queue for administration, which is looked at all the same.
constexpr unsigned io_vector = 1;

constexpr std::uint32_t admin_depth = 8;
constexpr std::uint32_t io_depth = 64;

/// A pair of queues, and where the program is in them.
struct Queue {
    Queue(Alloc submissions, Alloc answers, std::uint16_t number, std::uint32_t entries)
        : sq(std::move(submissions)), cq(std::move(answers)), id(number), depth(entries) {}

    void rewind() {
        std::ranges::fill(sq.bytes(), std::byte{});
        std::ranges::fill(cq.bytes(), std::byte{});
        tail = head = 0;
        phase = 1;
    }

    Alloc sq;
    Alloc cq;
    std::uint16_t id;
    std::uint32_t depth;
    std::uint32_t tail = 0;
    std::uint32_t head = 0;
    std::uint32_t phase = 1; // of the answers that are new
    std::uint16_t command_id = 0;
};

class Nvme final : public Engine {
public:
    static Result<std::unique_ptr<Engine>>
    create(const Session& session, const DeviceAccess& device, const EngineOptions& options);

    Nvme(const EngineTraits& traits, const DeviceAccess& device, Bar bar,
         std::optional<Interrupts> interrupts, std::optional<BlockRange> allow_write)
        : Engine(traits, device, completion_by(interrupts)), bar_(std::move(bar)),
          interrupts_(std::move(interrupts)), allow_write_(allow_write) {}

    ~Nvme() override {
        // Before its memory goes, the device must have stopped.
        if (check_present("nvme") && !shut_down())
            std::ignore = reset_function();
    }

    Nvme(const Nvme&) = delete;
    Nvme& operator=(const Nvme&) = delete;

    /// Make the memory that the device is given, start it, and learn what it has.
    Result<void> start(const Session& session) {
        const auto read = read64(reg_cap);
        if (!read)
            return std::unexpected(read.error());
        const Capabilities cap(*read);
        if (cap.none())
            return std::unexpected(Error{EIO, "nvme", "the registers read as all ones"});
        if (!cap.has_nvm_commands())
            return std::unexpected(
                Error{EOPNOTSUPP, "nvme", "the controller has no NVM command set"});
        const auto crto = cap.has_crto() ? bar_.read32(reg_crto) : Result<std::uint32_t>(0);
        if (!crto)
            return std::unexpected(crto.error());
        stop_within_ = cap.stop_within();
        ready_within_ = cap.ready_within(*crto);
        doorbell_stride_ = cap.doorbell_stride();
        page_ = cap.page();
        const auto entries = std::min(cap.queue_entries(), io_depth);

        auto admin = make_queue(session, 0, admin_depth);
        if (!admin)
            return std::unexpected(std::move(admin.error()));
        admin_.emplace(std::move(*admin));
        auto io = make_queue(session, 1, entries);
        if (!io)
            return std::unexpected(std::move(io.error()));
        io_.emplace(std::move(*io));
        auto list = Alloc::coherent(session, page_);
        if (!list)
            return std::unexpected(std::move(list.error()));
        list_.emplace(std::move(*list));
        auto identity = Alloc::coherent(session, identify_length);
        if (!identity)
            return std::unexpected(std::move(identity.error()));
        identity_.emplace(std::move(*identity));

        if (auto done = bring_up(); !done)
            return done;
        return learn();
    }

private:
    // ---- registers ----

    /// Not every controller takes accesses of 8 bytes.
    [[nodiscard]] Result<std::uint64_t> read64(std::uint64_t reg) const {
        const auto low = bar_.read32(reg);
        if (!low)
            return std::unexpected(low.error());
        const auto high = bar_.read32(reg + 4);
        if (!high)
            return std::unexpected(high.error());
        return std::uint64_t{*high} << 32 | *low;
    }

    [[nodiscard]] Result<void> write64(std::uint64_t reg, std::uint64_t value) const {
        if (auto done = bar_.write32(reg, static_cast<std::uint32_t>(value)); !done)
            return done;
        return bar_.write32(reg + 4, static_cast<std::uint32_t>(value >> 32));
    }

    [[nodiscard]] Result<void> ring(std::uint32_t doorbell, std::uint32_t value) const {
        return bar_.write32(reg_doorbells + std::uint64_t{doorbell} * doorbell_stride_, value);
    }

    /// Wait until the bits of the status register that `mask` names are `want`.
    [[nodiscard]] Result<void> await_status(std::uint32_t mask, std::uint32_t want,
                                            std::string_view what, milliseconds patience) const {
        const auto end = Clock::now() + patience;
        for (;;) {
            const bool late = Clock::now() >= end;
            if (auto there = check_present("nvme"); !there)
                return there;
            const auto csts = bar_.read32(reg_csts);
            if (!csts)
                return std::unexpected(csts.error());
            if (*csts == ~std::uint32_t{0})
                return std::unexpected(Error{EIO, "nvme", "the registers read as all ones"});
            if ((*csts & mask) == want)
                return {};
            if ((want & csts_ready) != 0 && (*csts & csts_fatal) != 0)
                return std::unexpected(Error{EIO, "nvme", "the controller reports a fatal status"});
            if (late)
                return std::unexpected(Error{
                    ETIMEDOUT, "nvme",
                    std::format("the controller did not {} in {} ms", what, patience.count())});
            std::this_thread::sleep_for(milliseconds(1));
        }
    }

    // ---- the controller's life ----

    [[nodiscard]] Result<void> disable() const {
        const auto cc = bar_.read32(reg_cc);
        if (!cc)
            return std::unexpected(cc.error());
        if ((*cc & cc_enable) != 0)
            if (auto done = bar_.write32(reg_cc, *cc & ~(cc_enable | cc_shutdown_mask)); !done)
                return done;
        return await_status(csts_ready, 0, "stop", stop_within_);
    }

    /// As its own driver leaves it when the machine goes down: caches written, stopped.
    [[nodiscard]] Result<void> shut_down() const {
        const auto cc = bar_.read32(reg_cc);
        if (!cc)
            return std::unexpected(cc.error());
        const auto csts = bar_.read32(reg_csts);
        if (!csts)
            return std::unexpected(csts.error());
        if ((*cc & cc_enable) != 0 && (*csts & csts_ready) != 0) {
            if (auto done = bar_.write32(reg_cc, (*cc & ~cc_shutdown_mask) | cc_shutdown); !done)
                return done;
            std::ignore =
                await_status(csts_shutdown_mask, csts_shutdown_done, "shut down", shutdown_within_);
        }
        return disable();
    }

    /// A pair of queues in coherent memory.
    Result<Queue> make_queue(const Session& session, std::uint16_t id, std::uint32_t depth) const {
        auto sq = Alloc::coherent(session, queue_length(page_, depth, sizeof(Command)));
        if (!sq)
            return std::unexpected(std::move(sq.error()));
        auto cq = Alloc::coherent(session, queue_length(page_, depth, sizeof(Answer)));
        if (!cq)
            return std::unexpected(std::move(cq.error()));
        if (sq->bytes().empty() || cq->bytes().empty())
            return std::unexpected(
                Error{EOPNOTSUPP, "nvme", "coherent memory cannot be mmapped on this platform"});
        return Queue(std::move(*sq), std::move(*cq), id, depth);
    }

    /// From any state to a controller that is ready, with its queues.
    Result<void> bring_up() {
        if (auto done = disable(); !done)
            return done;
        admin_->rewind();
        io_->rewind();
        const std::uint32_t size = admin_->depth - 1;
        if (auto done = bar_.write32(reg_aqa, size << 16 | size); !done)
            return done;
        if (auto done = write64(reg_asq, admin_->sq.dma_addr().value()); !done)
            return done;
        if (auto done = write64(reg_acq, admin_->cq.dma_addr().value()); !done)
            return done;
        const auto page_bits = static_cast<std::uint32_t>(std::countr_zero(page_.value()));
        if (auto done = bar_.write32(reg_cc, cc_enable | (page_bits - 12) << cc_page_shift |
                                                 cc_entry_sizes);
            !done)
            return done;
        if (auto done = await_status(csts_ready, csts_ready, "become ready", ready_within_); !done)
            return done;
        broken_ = false;
        if (!interrupts_) // by pin, which nobody would serve
            if (auto done = bar_.write32(reg_intms, ~std::uint32_t{0}); !done)
                return done;

        Command one_queue;
        one_queue.set(10, feature_number_of_queues);
        if (auto done = run(Admin::set_features, one_queue); !done)
            return done;
        Command cq;
        cq.set64(6, io_->cq.dma_addr().value());
        cq.set(10, (io_->depth - 1) << 16 | io_->id);
        cq.set(11, 1U | (interrupts_ ? io_vector << 16 | 1U << 1 : 0U)); // 1: contiguous
        if (auto done = run(Admin::create_cq, cq); !done)
            return done;
        Command sq;
        sq.set64(6, io_->sq.dma_addr().value());
        sq.set(10, (io_->depth - 1) << 16 | io_->id);
        sq.set(11, std::uint32_t{io_->id} << 16 | 1U);
        return run(Admin::create_sq, sq);
    }

    Result<std::span<const std::byte>> identify(std::uint32_t what, std::uint32_t nsid) {
        Command command;
        command.set(1, nsid);
        command.set64(6, identity_->dma_addr().value());
        command.set(10, what);
        if (auto done = run(Admin::identify, command); !done)
            return std::unexpected(std::move(done.error()));
        return identity_->bytes();
    }

    struct Namespace {
        std::uint32_t id = 0;
        std::uint64_t blocks = 0;
        unsigned block_bits = 0;

        [[nodiscard]] Size block() const { return Size(std::uint64_t{1} << block_bits); }
    };

    /// The first active namespace whose blocks are data and nothing else.
    Result<Namespace> find_namespace(std::uint32_t version, unsigned mdts) {
        std::vector<std::uint32_t> active = {1};
        if (version >= version_1_1) {
            const auto list = identify(identify_active_namespaces, 0);
            if (!list)
                return std::unexpected(list.error());
            active.clear();
            for (std::size_t at = 0; at < list->size() && load32(*list, at) != 0; at += 4)
                active.push_back(load32(*list, at));
        }
        std::string unfit;
        for (const std::uint32_t id : active) {
            const auto data = identify(identify_namespace, id);
            if (!data)
                return std::unexpected(data.error());
            const auto flbas = std::to_integer<unsigned>((*data)[26]);
            const std::uint32_t format =
                load32(*data, 128 + 4 * ((flbas & 0xf) | (flbas >> 1 & 0x30)));
            const Namespace found{
                .id = id, .blocks = load64(*data, 0), .block_bits = format >> 16 & 0xff};
            const bool metadata = (format & 0xffff) != 0;
            const bool fits = found.block_bits >= 9 && found.block_bits <= 20 &&
                              max_transfer(page_, mdts, found.block()) != Size();
            if (!metadata && found.blocks != 0 && fits)
                return found;
            unfit += std::format("; namespace {} has {} blocks of 2^{} bytes{}{}", id, found.blocks,
                                 found.block_bits, metadata ? " and metadata" : "",
                                 fits ? "" : ", which no command can move");
        }
        return std::unexpected(
            Error{EOPNOTSUPP, "nvme", "it has no active namespace that will do" + unfit});
    }

    /// What the controller and a namespace can do.
    Result<void> learn() {
        EngineTraits known = traits();
        const auto version = bar_.read32(reg_vs);
        if (!version)
            return std::unexpected(version.error());
        auto data = identify(identify_controller, 0);
        if (!data)
            return std::unexpected(std::move(data.error()));
        const auto mdts = std::to_integer<unsigned>((*data)[77]);
        const bool compares = (load16(*data, 520) & 1) != 0;
        const bool qemu = load16(*data, 0) == 0x1b36;

        shutdown_within_ = shutdown_within(load32(*data, 88));

        const auto found = find_namespace(*version, mdts);
        if (!found)
            return std::unexpected(found.error());
        const std::uint64_t blocks = found->blocks;
        nsid_ = found->id;
        known.block = found->block();
        known.max_transfer = max_transfer(page_, mdts, known.block);
        known.segment_edge = page_;
        known.device_memory = known.block * blocks;
        known.read_effect = compares ? ReadEffect::compares : ReadEffect::none;
        known.emulated = qemu;
        known.sees_read_faults = !qemu;
        if (allow_write_) {
            if (allow_write_->count == 0 || allow_write_->count > blocks ||
                allow_write_->first > blocks - allow_write_->count)
                return std::unexpected(
                    Error{EINVAL, "nvme",
                          std::format("the blocks to write to must lie within the {} there are",
                                      blocks)});
            first_block_ = allow_write_->first;
            known.device_memory = known.block * allow_write_->count;
            known.read_effect = ReadEffect::stores;
        }
        set_traits(known);
        return {};
    }

    // ---- commands ----

    Result<void> run(Admin opcode, Command& command) {
        return run(*admin_, static_cast<std::uint8_t>(opcode), command, "nvme");
    }

    /// Submit a command and wait for its answer.
    Result<void> run(Queue& queue, std::uint8_t opcode, Command& command, std::string_view op) {
        if (auto there = check_present(op); !there)
            return there;
        const std::uint16_t id = queue.command_id++;
        command.set(0, std::uint32_t{id} << 16 | opcode);
        std::memcpy(queue.sq.bytes().data() + std::size_t{queue.tail} * sizeof(Command), &command,
                    sizeof(command));
        queue.tail = (queue.tail + 1) % queue.depth;
        if (auto rung = ring(2U * queue.id, queue.tail); !rung) // orders memory before the register
            return rung;
        const auto status = answer(queue, id, op);
        if (!status)
            return std::unexpected(status.error());
        switch (*status) {
        case 0:
            return {};
        case status_compare_failure:
            return std::unexpected(Error{EILSEQ, op, "the device read other bytes than it has"});
        case status_data_transfer_error:
            return std::unexpected(Error{EIO, op, "the device was not let to the memory"});
        default:
            return std::unexpected(
                Error{EIO, op,
                      std::format("command {:#04x} answers status {:#x} of type {:#x}", opcode,
                                  *status & 0xff, *status >> 8)});
        }
    }

    /// The answer that is next in the queue, when it is there.
    static const volatile std::uint32_t* next(const Queue& queue) {
        const auto* entry = reinterpret_cast<const volatile std::uint32_t*>(
            queue.cq.bytes().data() + std::size_t{queue.head} * sizeof(Answer));
        return (le32toh(entry[3]) >> 16 & 1) == queue.phase ? entry : nullptr;
    }

    /// Wait for the answer to a command: the type and code of its status.
    Result<unsigned> answer(Queue& queue, std::uint16_t id, std::string_view op) {
        if (interrupts_ && &queue == &*io_)
            if (auto came = await_interrupt(op, *interrupts_, io_vector); !came) {
                if (came.error().code == ETIMEDOUT) {
                    broken_ = true;
                    if (next(queue) != nullptr)
                        came.error().detail += ", though the command has ended";
                }
                return std::unexpected(std::move(came.error()));
            }
        const milliseconds patience = &queue == &*io_ ? deadline() : admin_deadline;
        const auto end = Clock::now() + patience;
        const volatile std::uint32_t* entry = nullptr;
        for (unsigned looked = 0;; looked++) {
            const bool late = Clock::now() >= end;
            // The queue goes with the device, and who looks at it then gets SIGBUS. What remains
            // is an unbind in the moment of a look.
            if (looked >= 1000 || late)
                if (auto there = check_present(op); !there)
                    return std::unexpected(std::move(there.error()));
            entry = next(queue);
            if (entry != nullptr)
                break;
            if (looked < 1000 && !late)
                continue;
            const auto csts = bar_.read32(reg_csts);
            if (!csts)
                return std::unexpected(csts.error());
            if ((*csts & csts_fatal) != 0) { // also when all bits read as ones
                broken_ = true;
                return std::unexpected(
                    Error{EIO, op, std::format("the controller's status is {:#x}: fatal", *csts)});
            }
            if (late) {
                broken_ = true;
                return std::unexpected(
                    Error{ETIMEDOUT, op,
                          std::format("the device was not done after {} ms", patience.count())});
            }
            std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
        std::atomic_thread_fence(std::memory_order_acquire);
        const std::uint32_t last = le32toh(entry[3]);
        queue.head = (queue.head + 1) % queue.depth;
        if (queue.head == 0)
            queue.phase ^= 1;
        if (auto rung = ring(2U * queue.id + 1, queue.head); !rung)
            return std::unexpected(std::move(rung.error()));
        if ((last & 0xffff) != id) {
            broken_ = true;
            return std::unexpected(
                Error{EIO, op, std::format("command {} was answered, not {}", last & 0xffff, id)});
        }
        return last >> 17 & 0x7ff;
    }

    /// Give the device the addresses of memory: pages, of which the first may start inside.
    void set_pages(Command& command, std::span<const Segment> segments) const {
        const auto entries = list_->bytes();
        std::size_t count = 0;
        std::uint64_t second = 0;
        for (const Segment& segment : segments) {
            const std::uint64_t end = (segment.addr + segment.length).value();
            for (std::uint64_t at = segment.addr.value(); at < end;
                 at = (at & ~(page_.value() - 1)) + page_.value()) {
                if (count == 0) {
                    command.set64(6, at);
                } else {
                    const std::uint64_t raw = htole64(at);
                    std::memcpy(entries.data() + (count - 1) * sizeof(raw), &raw, sizeof(raw));
                    second = at;
                }
                count++;
            }
        }
        if (count == 2)
            command.set64(8, second);
        else if (count > 2)
            command.set64(8, list_->dma_addr().value());
    }

    Result<void> move(Io opcode, std::span<const Segment> segments, Size offset,
                      std::string_view op) {
        if (broken_)
            return std::unexpected(
                Error{EIO, op, "an earlier command may still be under way: reset the engine"});
        Size length;
        for (const Segment& segment : segments)
            length += segment.length;
        const std::uint64_t block = traits().block.value();
        Command command;
        command.set(1, nsid_);
        set_pages(command, segments);
        command.set64(10, first_block_ + offset.value() / block);
        command.set(12, static_cast<std::uint32_t>(length.value() / block - 1));
        return run(*io_, static_cast<std::uint8_t>(opcode), command, op);
    }

    Result<void> do_to_device(std::span<const Segment> src, Size device_offset) override {
        return move(allow_write_ ? Io::write : Io::compare, src, device_offset, "copy_to_device");
    }

    Result<void> do_from_device(std::span<const Segment> dst, Size device_offset) override {
        return move(Io::read, dst, device_offset, "copy_from_device");
    }

    Result<void> do_identify(std::span<const Segment> dst) override {
        if (broken_)
            return std::unexpected(Error{EIO, "identify",
                                         "an earlier command may still be under way: reset the "
                                         "engine"});
        Command command;
        set_pages(command, dst);
        command.set(10, identify_controller);
        return run(*admin_, static_cast<std::uint8_t>(Admin::identify), command, "identify");
    }

    Result<void> do_reset() override {
        if (auto there = check_present("reset"); !there)
            return there;
        // It may be beyond obeying its registers.
        if (auto done = disable(); !done)
            if (auto forced = reset_function(); !forced)
                return done;
        if (interrupts_)
            std::ignore = interrupts_->wait(io_vector, milliseconds(0));
        return bring_up();
    }

    Bar bar_;
    std::optional<Interrupts> interrupts_;
    std::optional<BlockRange> allow_write_;
    milliseconds stop_within_{500};
    milliseconds ready_within_{500};
    milliseconds shutdown_within_ = shutdown_within(0);
    std::uint32_t doorbell_stride_ = 4;
    Size page_;
    std::uint32_t nsid_ = 0;
    std::uint64_t first_block_ = 0;
    bool broken_ = false; // a command was given up, and may still be under way
    std::optional<Queue> admin_;
    std::optional<Queue> io_;
    std::optional<Alloc> list_;     // of PRPs
    std::optional<Alloc> identity_; // what Identify answers
};

Result<std::unique_ptr<Engine>> Nvme::create(const Session& session, const DeviceAccess& device,
                                             const EngineOptions& options) {
    auto bar = device.bar(0);
    if (!bar)
        return std::unexpected(std::move(bar.error()));
    auto interrupts = interrupts_for(device, options, io_vector + 1);
    if (!interrupts)
        return std::unexpected(std::move(interrupts.error()));
    auto engine = std::make_unique<Nvme>(nvme.traits, device, std::move(*bar),
                                         std::move(*interrupts), options.allow_write);
    if (auto started = engine->start(session); !started)
        return std::unexpected(std::move(started.error()));
    return engine;
}

} // namespace

constinit const EngineType nvme{
    .traits =
        {
            .name = "nvme",
            .description = "an NVMe controller",
            .emulated = false,
            .sees_read_faults = true,
            .dma_mask = ~0ULL,
            .max_transfer = Size(1 << 21),
            .alignment = 4,
            .block = Size(512),
            .segment_edge = Size(4096),
            .device_memory = Size(),
            .identity = identify_length,
            .read_effect = ReadEffect::compares,
            .deadline = io_deadline,
        },
    .drives = [](const DeviceIds& ids) noexcept { return ids.class_code == 0x010802; },
    .create = Nvme::create,
};

} // namespace dmaprobe::engines
