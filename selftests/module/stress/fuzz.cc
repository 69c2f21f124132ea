// SPDX-License-Identifier: GPL-2.0-only
// Calls as no sane program makes them, by many threads that share sessions: the list
// of commands, with members changed. What a call answers does not matter much; that
// the kernel is well, and nothing is left in the end, does.
//
// DMAPROBE_FUZZ_SEED repeats what each thread draws (not how the threads
// interleave), DMAPROBE_FUZZ_CALLS says how many calls to make.

#include "support/ktap.h"
#include "support/ops.h"
#include "support/system.h"
#include "support/uring.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::seconds;

constexpr unsigned nr_threads = 4;
constexpr unsigned nr_sessions = 3;
constexpr size_t nr_kinds = all_kinds.size();
constexpr size_t ids_kept = 6; // of each kind, for each session
constexpr unsigned batch_max = 64;
constexpr size_t slot_size = 512; // room for any struct, and a tail

// A generator whose draws are the same everywhere (splitmix64).
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;

        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    // 0 to n - 1.
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
    bool chance(uint32_t one_in) { return below(one_in) == 0; }
    template <class C>
    const auto& pick(const C& from) {
        return from[below(static_cast<uint32_t>(std::size(from)))];
    }

private:
    uint64_t state_;
};

// A member that nothing in the list of ops describes: lengths, offsets, counts.
struct Word {
    size_t offset;
    bool wide;
};

// An op as the fuzzer knows it.
struct Target {
    const Op* op;
    std::vector<std::byte> sample;
    std::vector<Word> words;
    bool works; // on this machine
};

size_t index_of(Kind kind) {
    return static_cast<size_t>(kind);
}

// The members between those that are described.
std::vector<Word> other_words(const Op& op) {
    std::vector<bool> known(op.size / 4);
    std::vector<Word> words;
    const auto mark = [&](size_t offset, size_t size) {
        for (size_t at = offset; at < offset + size; at += 4)
            known.at(at / 4) = true;
    };

    mark(0, 8);
    for (const IdField& f : op.ids)
        mark(f.offset, 4);
    for (const EnumField& f : op.enums)
        mark(f.offset, 4);
    for (const PointerField& f : op.pointers)
        mark(f.offset, 8);
    for (const AttrsField& f : op.attrs)
        mark(f.offset, 8);
    for (const size_t offset : op.reserved)
        mark(offset, 4);
    if (op.fd)
        mark(*op.fd, 4);
    for (size_t at = 8; at < op.size; at += 8) {
        if (!known[at / 4] && !known[at / 4 + 1])
            words.push_back({at, true});
        else
            for (const size_t half : {at, at + 4})
                if (!known[half / 4])
                    words.push_back({half, false});
    }
    return words;
}

// What all threads of a round share.
struct World {
    std::set<int> own; // descriptors that are not the callers' to close
    std::string bdf;
    std::vector<Target> targets;
    std::array<Fd, nr_sessions> sessions;
    // Hints; that one is wrong is as good as any other mistake.
    std::array<std::array<std::array<std::atomic<uint32_t>, ids_kept>, nr_kinds>, nr_sessions>
        ids{};
    std::atomic<bool> gone = false; // the device may be, at any time
};

// How often calls of each op succeeded and failed.
struct Counts {
    std::array<uint64_t, 256> ok{};
    std::array<uint64_t, 256> failed{};
    uint64_t forks = 0;
    uint64_t surprises = 0; // answers that no call may give
    int surprise = 0;
    unsigned surprise_of = 0;

    void add(const Counts& other) {
        for (size_t i = 0; i < ok.size(); i++) {
            ok[i] += other.ok[i];
            failed[i] += other.failed[i];
        }
        forks += other.forks;
        surprises += other.surprises;
        if (other.surprise) {
            surprise = other.surprise;
            surprise_of = other.surprise_of;
        }
    }
    uint64_t total() const {
        return std::accumulate(ok.begin(), ok.end(), uint64_t{0}) +
               std::accumulate(failed.begin(), failed.end(), uint64_t{0});
    }
};

bool is_an_answer(int err, bool may_be_gone) {
    switch (err) {
    case EINVAL:
    case E2BIG:
    case EOPNOTSUPP:
    case EFAULT:
    case ENOENT:
    case EBUSY:
    case ENOMEM:
    case EIO:
    case EACCES:
    case ENXIO:
    case EEXIST:
    case ENOSPC:
    case EPERM:
    case EBADF:
    case EMFILE:
    case EINTR:
    case ENOTTY:
    case ETIMEDOUT: // an exporter that is moving its memory
        return true;
    case ENODEV:
        return may_be_gone;
    default:
        return false;
    }
}

// One thread's way of making calls.
class Caller {
public:
    Caller(World& world, uint64_t seed) : world_(world), random_(seed) {
        make_slots();
        area_ = Memory::fenced(output_size + batch_max * input_size);
        read_only_ = Memory::fenced(page_size());
        read_only_.protect(PROT_READ);
        memset(area_.data(), 0, area_.size());
        ring_ = Uring(ring_entries);
        fds_.fill(-1);
        for (View& view : views_)
            view.room = Memory(mmap(nullptr, view_max + page_size(), PROT_NONE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                               view_max + page_size());
    }

    const Memory& slots() const { return slots_; }
    const Counts& counts() const { return counts_; }

    // Make at least this many calls.
    void run(uint64_t calls, const std::vector<const Memory*>& all_slots) {
        const uint64_t end = made_ + calls;

        while (made_ < end) {
            const uint32_t what = random_.below(1000);

            if (what < 520)
                by_run();
            else if (what < 800)
                by_ioctl();
            else if (what < 930)
                by_ring();
            else if (what < 970)
                map_or_unmap();
            else if (what < 985)
                scribble(*random_.pick(all_slots));
            else if (what < 990)
                new_session();
            else if (what < 991)
                fork_and_call();
            if (world_.gone)
                reopen_dead();
        }
    }

    // Calls that want nobody else to hold anything, each at its own risk.
    void alone(unsigned long command) {
        for (int i = 0; i < 8; i++)
            submit_one(target_of(command));
    }

    // Whatever it holds outside of sessions. Sessions live while they are mmapped.
    void let_go() {
        for (View& view : views_)
            view.room.unmap();
    }

private:
    static constexpr unsigned ring_entries = 16;
    // What a call writes to, and what each of a batch reads from.
    static constexpr size_t output_size = 65536;
    static constexpr size_t input_size = 1024;
    static constexpr size_t view_max = 16384;

    struct Call {
        const Target* target = nullptr;
        unsigned session = 0;
        std::byte* at = nullptr; // its struct, or nullptr when that is somewhere bad
        void* given = nullptr;   // what the call is given
    };

    std::byte* slot(unsigned i) const { return slots_.data() + i * slot_size; }

    // Structs are written at one address, and can be given to calls at another one, where
    // the same bytes can only be read.
    void make_slots() {
        constexpr size_t length = batch_max * slot_size;
        const Fd file(memfd_create("slots", MFD_CLOEXEC));

        if (!file || ftruncate(file.get(), length))
            std::abort();
        const auto view = [&](int prot) {
            Memory m = Memory::fenced(length);

            if (!m ||
                mmap(m.data(), length, prot, MAP_SHARED | MAP_FIXED, file.get(), 0) == MAP_FAILED)
                std::abort();
            return m;
        };
        slots_ = view(PROT_READ | PROT_WRITE);
        unwritable_slots_ = view(PROT_READ);
        edge_ = Memory::fenced(page_size());
    }

    // Where a call finds its struct: as a rule where it was written; or where it can be read
    // but not written; or, for one call at a time, where only its first part is there.
    void place(Call& call, bool only_one) {
        const size_t size = call.target->op->size;

        call.given = call.at;
        if (random_.chance(24)) {
            call.given = unwritable_slots_.data() + (call.at - slots_.data());
        } else if (only_one && random_.chance(24)) {
            std::byte* const cut =
                edge_.data() + edge_.size() - random_.below(static_cast<uint32_t>(size + 1));

            memcpy(cut, call.at,
                   std::min(size, static_cast<size_t>(edge_.data() + edge_.size() - cut)));
            call.given = cut;
            call.at = nullptr;
        }
    }

    // --- drawing ---

    uint64_t interesting() {
        const uint64_t page = page_size();
        const std::array<uint64_t, 32> values = {0,
                                                 1,
                                                 2,
                                                 7,
                                                 8,
                                                 page - 1,
                                                 page,
                                                 page + 1,
                                                 2 * page,
                                                 3 * page,
                                                 4 * page,
                                                 4 * page + 1,
                                                 16 * page,
                                                 512 * page,
                                                 512 * page - 1,
                                                 uint64_t{1} << 22,
                                                 uint64_t{1} << 30,
                                                 (uint64_t{1} << 30) + 1,
                                                 (uint64_t{1} << 32) - page,
                                                 (uint64_t{1} << 32) - 1,
                                                 uint64_t{1} << 32,
                                                 (uint64_t{1} << 32) + page,
                                                 uint64_t{1} << 47,
                                                 uint64_t{1} << 62,
                                                 (uint64_t{1} << 63) - 1,
                                                 uint64_t{1} << 63,
                                                 ~uint64_t{0} - 4 * page + 1,
                                                 ~uint64_t{0} - page + 1,
                                                 ~uint64_t{0} - page,
                                                 ~uint64_t{0} - 1,
                                                 ~uint64_t{0},
                                                 0xfff0000000000fff};

        switch (random_.below(8)) {
        case 0:
            return random_.next();
        case 1:
            return uint64_t{1} << random_.below(64);
        case 2:
            return random_.below(5) * page;
        default:
            return random_.pick(values);
        }
    }

    // Never into the program's own data, of which nobody would know any more.
    uint64_t pointer() {
        switch (random_.below(10)) {
        case 0:
            return 0;
        case 1:
            return read_only_.address() + random_.below(static_cast<uint32_t>(page_size()));
        case 2: // across its end, into what cannot be touched
            return area_.address() + area_.size() - random_.below(64);
        case 3:
            return area_.address() + area_.size();
        case 4: // not the program's at all
            return interesting() | uint64_t{1} << 63;
        case 5:
            return slots_.address() + random_.below(batch_max * slot_size);
        case 6: // the module's own memory, perhaps
        case 7:
            return views_[random_.below(nr_views)].room.address() +
                   random_.below(static_cast<uint32_t>(page_size()));
        default:
            return area_.address() + random_.below(static_cast<uint32_t>(area_.size()));
        }
    }

    // An id of this kind; in a run preferably of what a call before has made.
    uint32_t id(Kind kind, unsigned session, std::span<const Call> before) {
        if (random_.chance(12))
            return random_.below(65);
        if (!before.empty() && random_.chance(3)) {
            for (int tries = 0; tries < 8; tries++) {
                const uint32_t i = random_.below(static_cast<uint32_t>(before.size()));
                const auto& makes = before[i].target->op->makes;

                if (makes && makes->kind == kind)
                    return DMAPROBE_RUN_ID(i);
            }
        }
        for (int tries = 0; tries < 4; tries++)
            if (const uint32_t known = random_.pick(world_.ids[session][index_of(kind)]))
                return known;
        return random_.below(65);
    }

    uint32_t bad_id(unsigned session) {
        switch (random_.below(6)) {
        case 0:
            return 0;
        case 1:
            return DMAPROBE_RUN_ID(random_.below(2 * batch_max));
        case 2:
            return static_cast<uint32_t>(interesting());
        case 3:
            return id(random_.pick(all_kinds), random_.below(nr_sessions), {});
        default:
            return id(random_.pick(all_kinds), session, {});
        }
    }

    uint64_t attrs(uint64_t taken) {
        const uint64_t drawn = random_.next() & taken;

        return random_.chance(2) ? drawn & random_.next() : drawn;
    }

    // A value that could be meant.
    uint64_t near(uint64_t value) {
        switch (random_.below(8)) {
        case 0:
            return value * 2;
        case 1:
            return value / 2;
        case 2:
            return random_.below(5) * page_size();
        default:
            return value;
        }
    }

    // A list for MAP_SG, calls for RUN, bytes for the others.
    void fill_input(const Op& op, unsigned session, std::byte* to) {
        if (op.command == DMAPROBE_MAP_SG) {
            const unsigned nr = 1 + random_.below(8);

            for (unsigned i = 0; i < nr; i++) {
                dmaprobe_sg_entry entry = {.offset = random_.below(3) * page_size(),
                                           .length = page_size(),
                                           .buffer_id = id(Kind::buffer, session, {}),
                                           .__reserved = 0};

                if (random_.chance(16))
                    entry.length = interesting();
                if (random_.chance(16))
                    entry.offset = interesting();
                memcpy(to + i * sizeof(entry), &entry, sizeof(entry));
            }
        } else if (op.command == DMAPROBE_RUN) {
            std::byte* nop = to + 256;
            dmaprobe_run_op call = {.cmd = random_.chance(4) ? DMAPROBE_RUN : DMAPROBE_NOP,
                                    .result = 0,
                                    .arg = reinterpret_cast<uintptr_t>(nop)};

            set<uint64_t>(nop, 0, sizeof(dmaprobe_nop));
            memcpy(to, &call, sizeof(call));
        }
    }

    // What would take too long or too much, made small again; not what is refused.
    void tame(const Op& op, std::byte* at) {
        const auto bound = [&](size_t offset, uint64_t most, uint64_t refused) {
            const auto value = get<uint64_t>(at, offset);

            if (value > most && value <= refused)
                set<uint64_t>(at, offset, value % most);
        };

        switch (op.command) {
        case DMAPROBE_BENCH:
            bound(offsetof(dmaprobe_bench, count), 100, 10'000'000);
            break;
        case DMAPROBE_TRANSLATE:
            bound(offsetof(dmaprobe_translate, length), uint64_t{1} << 18, uint64_t{1} << 32);
            break;
        case DMAPROBE_BUFFER_ALLOC:
            if (!random_.chance(64))
                bound(offsetof(dmaprobe_buffer_alloc, length), 64 * page_size(), uint64_t{1} << 30);
            break;
        case DMAPROBE_BUFFER_PIN:
            // The arrays for the pages of a gigabyte, for nothing.
            if (!random_.chance(64))
                bound(offsetof(dmaprobe_buffer_pin, length), 64 * page_size(), uint64_t{1} << 30);
            break;
        case DMAPROBE_ALLOC:
            if (!random_.chance(64))
                bound(offsetof(dmaprobe_alloc, length), 64 * page_size(), uint64_t{1} << 28);
            break;
        case DMAPROBE_POOL_CREATE:
            if (!random_.chance(16))
                bound(offsetof(dmaprobe_pool_create, block_size), page_size(), uint64_t{1} << 20);
            break;
        case DMAPROBE_MAP_SG:
            if (get<uint32_t>(at, offsetof(dmaprobe_map_sg, nr_entries)) > 512 &&
                !random_.chance(64))
                set<uint32_t>(at, offsetof(dmaprobe_map_sg, nr_entries), 1 + random_.below(12));
            break;
        default:
            break;
        }
    }

    // A call that may well work.
    void draw(const Target& target, unsigned session, std::span<const Call> before, std::byte* at) {
        const Op& op = *target.op;

        memcpy(at, target.sample.data(), op.size);
        if (op.flags && random_.chance(4))
            set<uint32_t>(at, 4, op.flags & static_cast<uint32_t>(random_.next()));
        for (const IdField& f : op.ids) {
            const bool other = !f.also.empty() && random_.chance(2);

            set<uint32_t>(at, f.offset,
                          f.optional && random_.chance(4)
                              ? 0
                              : id(other ? random_.pick(f.also) : f.kind, session, before));
        }
        for (const EnumField& f : op.enums)
            if (random_.chance(4))
                set<uint32_t>(at, f.offset, random_.below(f.end));
        for (const AttrsField& f : op.attrs)
            if (random_.chance(6))
                set<uint64_t>(at, f.offset, attrs(f.taken));
        for (const PointerField& f : op.pointers)
            set<uint64_t>(at, f.offset, area_.address());
        if (op.command == DMAPROBE_MAP_SG || op.command == DMAPROBE_RUN) {
            std::byte* input = area_.data() + output_size +
                               static_cast<size_t>(at - slots_.data()) / slot_size * input_size;

            fill_input(op, session, input);
            set<uint64_t>(at, op.pointers[0].offset, reinterpret_cast<uintptr_t>(input));
        }
        for (const Word& w : target.words) {
            if (w.wide && random_.chance(6))
                set<uint64_t>(at, w.offset, near(get<uint64_t>(at, w.offset)));
            else if (!w.wide && random_.chance(16))
                set<uint32_t>(at, w.offset, static_cast<uint32_t>(near(16)));
        }
        if (op.fd)
            set<int32_t>(at, *op.fd, random_.pick(fds_));
        // As much as others map of it.
        if (op.command == DMAPROBE_BUFFER_PIN)
            set<uint64_t>(at, offsetof(dmaprobe_buffer_pin, length), near(4 * page_size()));
    }

    // One member changed.
    void mutate(const Target& target, unsigned session, std::byte* at) {
        const Op& op = *target.op;

        switch (random_.below(10)) {
        case 0: // the size, and with it what lies behind the struct
            set<uint32_t>(at, 0,
                          random_.chance(2) ? random_.below(slot_size + 1)
                                            : static_cast<uint32_t>(interesting()));
            if (random_.chance(2))
                memset(at + op.size, random_.chance(2) ? 0 : 0x5a, slot_size - op.size);
            break;
        case 1:
            set<uint32_t>(at, 4, 1u << random_.below(32));
            break;
        case 2:
        case 3:
            if (!op.ids.empty())
                set<uint32_t>(at,
                              op.ids[random_.below(static_cast<uint32_t>(op.ids.size()))].offset,
                              bad_id(session));
            break;
        case 4:
            if (!op.pointers.empty())
                set<uint64_t>(at, random_.pick(op.pointers).offset, pointer());
            break;
        case 5:
            if (!op.attrs.empty())
                set<uint64_t>(at, random_.pick(op.attrs).offset, interesting());
            break;
        case 6:
        case 7:
        case 8:
            if (!target.words.empty()) {
                const Word w = random_.pick(target.words);

                if (w.wide)
                    set<uint64_t>(at, w.offset, interesting());
                else
                    set<uint32_t>(at, w.offset, static_cast<uint32_t>(interesting()));
            }
            break;
        default: // any other member, but no half of an address
            if (const size_t offset = 8 + 4 * random_.below(static_cast<uint32_t>(op.size / 4 - 1));
                offset < op.size &&
                std::ranges::none_of(
                    op.pointers,
                    [&](const PointerField& f) { return f.offset == (offset & ~size_t{7}); }))
                set<uint32_t>(at, offset, static_cast<uint32_t>(interesting()));
            break;
        }
    }

    Call make(unsigned i, unsigned session, const Target& target, std::span<const Call> before) {
        std::byte* at = slot(i);

        draw(target, session, before, at);
        if (random_.chance(3))
            for (uint32_t more = random_.below(3); more < 3; more++)
                mutate(target, session, at);
        tame(*target.op, at);
        Call call = {.target = &target, .session = session, .at = at};
        place(call, i == 0);
        return call;
    }

    const Target& any() {
        return world_.targets[random_.below(static_cast<uint32_t>(world_.targets.size()))];
    }

    // --- calling ---

    int fd_of(unsigned session) const { return world_.sessions[session].get(); }

    void learn(const Call& call, int err) {
        const Op& op = *call.target->op;

        made_++;
        if (err) {
            counts_.failed[op.number]++;
            // A dma-buf can lose its memory at any time.
            if (!is_an_answer(err, world_.gone || op.command == DMAPROBE_MAP_DMABUF)) {
                counts_.surprises++;
                counts_.surprise = err;
                counts_.surprise_of = op.number;
            }
            return;
        }
        counts_.ok[op.number]++;
        if (!call.at)
            return;
        if (op.makes)
            world_.ids[call.session][index_of(op.makes->kind)][random_.below(ids_kept)] =
                get<uint32_t>(call.at, op.makes->offset);
        if (op.command == DMAPROBE_EXPORT) {
            const auto fd = get<int32_t>(call.at, *op.fd);
            int& old = fds_[random_.below(static_cast<uint32_t>(fds_.size()))];

            // Another thread may have scribbled over it: see scribble().
            if (fd < 0 || world_.own.contains(fd))
                return;
            if (old >= 0)
                close(old);
            old = fd;
        }
    }

    void submit_one(const Target& target) {
        const unsigned session = random_.below(nr_sessions);
        Call call = make(0, session, target, {});
        void* at = call.given;
        unsigned long command = target.op->command;

        if (random_.chance(32)) {
            // NOLINTNEXTLINE(performance-no-int-to-ptr): wherever that is
            at = reinterpret_cast<void*>(pointer());
            call.at = nullptr;
            // Where it is, there may be a struct of something that takes long.
            if (target.op->command == DMAPROBE_BENCH)
                at = nullptr;
        }
        if (random_.chance(256)) // no command at all
            command = _IOC(1 + random_.below(3), DMAPROBE_IOC_MAGIC, random_.below(256),
                           random_.below(16));
        const int err = ioctl(fd_of(session), command, at) < 0 ? errno : 0;
        learn(call, err);
    }

    void by_ioctl() {
        for (uint32_t more = random_.below(8); more < 8; more++)
            submit_one(any());
    }

    void by_run() {
        const unsigned session = random_.below(nr_sessions);
        const unsigned nr = 1 + (random_.chance(3) ? random_.below(batch_max) : random_.below(8));
        std::array<dmaprobe_run_op, batch_max> ops;
        dmaprobe_run run = {};

        for (unsigned i = 0; i < nr; i++) {
            calls_[i] = make(i, session, any(), std::span(calls_).first(i));
            ops[i] = {.cmd = static_cast<uint32_t>(calls_[i].target->op->command),
                      .result = 0,
                      .arg = reinterpret_cast<uintptr_t>(calls_[i].given)};
        }
        run.size = sizeof(run);
        run.flags = random_.chance(8) ? 0 : DMAPROBE_RUN_CONTINUE;
        run.nr_ops = nr;
        run.ops = reinterpret_cast<uintptr_t>(ops.data());
        if (ioctl(fd_of(session), DMAPROBE_RUN, &run) < 0) {
            learn({.target = &target_of(DMAPROBE_RUN), .session = session}, errno);
            return;
        }
        for (unsigned i = 0; i < nr && i < run.done; i++)
            learn(calls_[i], -ops[i].result);
    }

    void by_ring() {
        const unsigned nr = 1 + random_.below(ring_entries / 2);
        Completion done;

        if (!ring_) {
            by_ioctl();
            return;
        }
        for (unsigned i = 0; i < nr; i++) {
            const unsigned session = random_.below(nr_sessions);

            calls_[i] = make(i, session, any(), {});
            io_uring_sqe& sqe =
                ring_.command(fd_of(session), calls_[i].target->op->command, calls_[i].given, i);
            if (random_.chance(8))
                sqe.flags = IOSQE_ASYNC;
            if (random_.chance(64))
                sqe.len = 1;
        }
        unsigned waiting = nr;
        if (random_.chance(8)) {
            ring_.cancel(random_.below(nr), batch_max);
            waiting++;
        }
        if (ring_.submit() < 0)
            return;
        for (; waiting; waiting--) {
            if (!ring_.wait(done)) {
                counts_.surprises++;
                counts_.surprise = ETIME;
                return;
            }
            if (done.tag < nr)
                learn(calls_[done.tag], done.result == -ECANCELED ? EINTR : -done.result);
        }
    }

    const Target& target_of(unsigned long command) const {
        return *std::ranges::find(world_.targets, command,
                                  [](const Target& t) { return t.op->command; });
    }

    // --- around the calls ---

    void map_or_unmap() {
        View& view = views_[random_.below(nr_views)];

        if (view.used) {
            if (mmap(view.room.data(), view_max, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                     -1, 0) != MAP_FAILED)
                view.used = false;
            return;
        }
        const unsigned session = random_.below(nr_sessions);
        const uint32_t object =
            random_.chance(8) ? bad_id(session)
                              : id(random_.chance(2) ? Kind::buffer : Kind::alloc, session, {});
        const uint64_t length = (1 + random_.below(4)) * page_size();
        const uint64_t offset = uint64_t{object} << 32 | random_.below(3) * page_size();
        void* at = mmap(nullptr, length, random_.chance(4) ? PROT_READ : PROT_READ | PROT_WRITE,
                        random_.chance(16) ? MAP_PRIVATE : MAP_SHARED, fd_of(session),
                        static_cast<off_t>(offset & INT64_MAX));

        if (at == MAP_FAILED)
            return;
        // To where calls that write beyond its end meet nothing.
        if (mremap(at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, view.room.data()) ==
            MAP_FAILED)
            munmap(at, length);
        else
            view.used = true;
    }

    // Change what another thread has handed over, or is about to. To values that are
    // no descriptor of a file, since those are closed, and no count that takes long.
    void scribble(const Memory& slots) {
        for (int i = 0; i < 4; i++) {
            auto* words = reinterpret_cast<std::atomic<uint32_t>*>(slots.data());
            const uint32_t value = static_cast<uint32_t>(interesting()) | scribbled;

            words[random_.below(batch_max * slot_size / 4)].store(value, std::memory_order_relaxed);
        }
    }

    // A new one in its place, now and then one that may only look; the old one ends while
    // others call it.
    void new_session() {
        const Raw fresh = Raw::open(world_.bdf, random_.chance(16) ? O_RDONLY : O_RDWR);
        const unsigned session = random_.below(nr_sessions);

        if (!fresh)
            return;
        dup3(fresh.fd(), fd_of(session), O_CLOEXEC);
        for (auto& kind : world_.ids[session])
            for (auto& id : kind)
                id = 0;
    }

    // After the device was gone, no session of then can be used any more.
    void reopen_dead() {
        for (unsigned i = 0; i < nr_sessions; i++) {
            dmaprobe_nop op = {.size = sizeof(op), .flags = 0};

            if (ioctl(fd_of(i), DMAPROBE_NOP, &op) == 0 || errno != ENODEV)
                continue;
            const Raw fresh = Raw::open(world_.bdf);
            if (fresh)
                dup3(fresh.fd(), fd_of(i), O_CLOEXEC);
        }
    }

    // A child that makes some calls with what it inherited and ends.
    void fork_and_call() {
        const pid_t child = fork();

        if (child == 0) {
            for (int i = 0; i < 16; i++)
                submit_one(any());
            _exit(0);
        }
        if (child > 0) {
            counts_.forks++;
            waitpid(child, nullptr, 0);
        }
    }

    static constexpr uint32_t scribbled = 1u << 31;
    static constexpr unsigned nr_views = 4;

    // A place for an mmap of the module's memory, with one behind it for nothing.
    struct View {
        Memory room;
        bool used = false;
    };

    World& world_;
    Random random_;
    Memory slots_;
    Memory unwritable_slots_;
    Memory edge_;
    Memory area_;
    Memory read_only_;
    Uring ring_;
    std::array<Call, batch_max> calls_;
    std::array<View, nr_views> views_;
    std::array<int, 6> fds_;
    uint64_t made_ = 0;
    Counts counts_;
};

// The descriptors in use.
std::set<int> descriptors() {
    std::set<int> all;

    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
        all.insert(std::stoi(entry.path().filename()));
    // Without the one by which it looked.
    std::erase_if(all, [](int fd) { return fcntl(fd, F_GETFD) < 0; });
    return all;
}

class Fuzz : public DeviceTest {
protected:
    static constexpr const char* limit_path = "/sys/module/dmaprobe/parameters/session_max_mib";

    void SetUp() override {
        // It goes all ways by itself.
        if (transport() != "ioctl")
            GTEST_SKIP() << "once is enough";
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        world.bdf = bdf;
        seed = env_number("DMAPROBE_FUZZ_SEED", std::random_device()());
        calls = env_number("DMAPROBE_FUZZ_CALLS", 20'000);
        learn_samples();
        ASSERT_OK(s.close());
        // What several sessions may have together the guest must have as well.
        limit = read_text(limit_path);
        ASSERT_OK(write_text(limit_path, "8"));
        pinned = pinned_pages();
        RecordProperty("DMAPROBE_FUZZ_SEED", std::to_string(seed));
        diagnose(std::format("DMAPROBE_FUZZ_SEED={} DMAPROBE_FUZZ_CALLS={}", seed, calls));
    }

    void TearDown() override {
        if (!limit.empty()) {
            EXPECT_OK(write_text(limit_path, limit));
        }
    }

    void learn_samples() {
        Live live(bdf);

        for (const Op& op : ops()) {
            Target target = {.op = &op, .sample = {}, .words = other_words(op), .works = false};

            target.sample.resize(op.size);
            op.sample(live, target.sample.data());
            // Nothing bounces a dma-buf.
            target.works = unsupported_reason(op, s).empty() &&
                           (op.command != DMAPROBE_MAP_DMABUF || !s.bounces());
            world.targets.push_back(std::move(target));
        }
    }

    void open_sessions() {
        for (Fd& session : world.sessions) {
            const Raw fresh = Raw::open(bdf);

            ASSERT_TRUE(fresh) << strerror(fresh.error());
            session = Fd(fcntl(fresh.fd(), F_DUPFD_CLOEXEC, 0));
        }
    }

    void close_sessions() {
        for (Fd& session : world.sessions)
            session.close();
        for (auto& session : world.ids)
            for (auto& kind : session)
                for (auto& id : kind)
                    id = 0;
    }

    // From sessions that hold nothing to sessions that are closed.
    void round(uint64_t number, uint64_t length, const std::function<void()>& meanwhile) {
        std::vector<std::unique_ptr<Caller>> callers;
        std::vector<const Memory*> slots;
        std::vector<std::thread> threads;

        ASSERT_NO_FATAL_FAILURE(open_sessions());
        for (unsigned i = 0; i < nr_threads; i++) {
            callers.push_back(std::make_unique<Caller>(world, seed + number * nr_threads + i));
            slots.push_back(&callers.back()->slots());
        }
        world.own = descriptors();
        for (const unsigned long alone : {DMAPROBE_SET_MASK, DMAPROBE_SET_SEGMENTS})
            callers[0]->alone(alone);
        reset_limits();
        threads.reserve(nr_threads);
        for (auto& caller : callers)
            threads.emplace_back(
                [&caller, &slots, length] { caller->run(length / nr_threads, slots); });
        if (meanwhile)
            meanwhile();
        for (std::thread& thread : threads)
            thread.join();
        for (auto& caller : callers) {
            counts.add(caller->counts());
            caller->let_go();
        }
        // dma-bufs, and what a lost answer has left.
        for (const int fd : descriptors())
            if (!world.own.contains(fd))
                close(fd);
        close_sessions();
    }

    // Else nothing might be mapped any more.
    void reset_limits() const {
        dmaprobe_set_mask mask = {};
        dmaprobe_set_segments segments = {};

        mask.flags = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT;
        mask.mask = 0xffffffff;
        segments.flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY |
                         DMAPROBE_SET_SEGMENTS_MIN_ALIGN;
        segments.max_segment_size = 1 << 16;
        segments.segment_boundary_mask = 0xffffffff;
        call(world.sessions[0].get(), mask);
        call(world.sessions[0].get(), segments);
    }

    // Everything is closed: nothing may be left, and all must work.
    void expect_a_sound_machine() {
        EXPECT_EQ(counts.surprises, 0u) << "for example " << strerrorname_np(counts.surprise)
                                        << " of command " << counts.surprise_of;
        EXPECT_TRUE(wait_for([&] { return pinned_pages() == pinned; }, seconds(5)))
            << "pages stay pinned";
        EXPECT_EQ(dma_in_use(bdf), "");
        Raw fresh = Raw::open(bdf);
        ASSERT_TRUE(fresh) << strerror(fresh.error());
        dmaprobe_get_stats now = {};
        dmaprobe_get_stats none = {};
        ASSERT_OK(fresh(now));
        none.size = now.size;
        EXPECT_EQ(memcmp(&now, &none, sizeof(now)), 0) << "a new session holds something";
        EXPECT_OK(fresh.set_mask(0xffffffff)) << "something is still mapped";

        Buffer b;
        dmaprobe_map map = {};
        std::swap(s, fresh);
        ASSERT_OK(s.alloc(b, 4 * page_size()));
        map.buffer_id = b.id;
        map.length = b.length;
        ASSERT_OK(s(map));
        if (s.translated())
            expect_leads_to(map.dma_addr, map.length, b, 0);
        EXPECT_OK(s.unmap(map.id));
        if (s.translated())
            expect_hole(map.dma_addr, map.length);
        EXPECT_OK(s.free(b));
    }

    void report(std::chrono::duration<double> took) {
        std::string line;

        for (const Target& t : world.targets)
            line += std::format(" {} {}/{}", t.op->name, counts.ok[t.op->number],
                                counts.failed[t.op->number]);
        diagnose("succeeded/failed:" + line);
        diagnose(std::format("{} calls in {:.1f} s, {:.0f} in a second; {} forks", counts.total(),
                             took.count(), static_cast<double>(counts.total()) / took.count(),
                             counts.forks));
        RecordProperty("calls", std::to_string(counts.total()));
    }

    World world;
    Counts counts;
    uint64_t seed = 0;
    uint64_t calls = 0;
    std::string limit;
    int64_t pinned = 0;
};

TEST_F(Fuzz, AllOps) {
    constexpr uint64_t round_length = 4000;
    const auto start = std::chrono::steady_clock::now();

    for (uint64_t number = 0; counts.total() < calls; number++) {
        restart_deadline();
        ASSERT_NO_FATAL_FAILURE(round(number, std::min(calls, round_length), {}));
    }
    report(std::chrono::steady_clock::now() - start);
    expect_a_sound_machine();
    // What always fails, or never does, is not tested.
    const uint64_t some = std::min<uint64_t>(calls / 20'000, 20);
    for (const Target& target : world.targets) {
        SCOPED_TRACE(target.op->name);
        if (target.works) {
            EXPECT_GE(counts.ok[target.op->number], some);
        }
        EXPECT_GE(counts.failed[target.op->number], some);
    }
}

// The device comes and goes meanwhile.
TEST_F(Fuzz, WhileTheDeviceGoes) {
    KeepDriver keep(bdf);
    const auto start = std::chrono::steady_clock::now();

    world.gone = true;
    for (uint64_t number = 0; number < 3; number++)
        ASSERT_NO_FATAL_FAILURE(round(number, std::min<uint64_t>(calls / 8, 4000), [&] {
            for (int i = 0; i < 2; i++) {
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
                EXPECT_OK(unbind_driver(bdf));
                EXPECT_OK(probe_driver(bdf));
            }
        }));
    ASSERT_TRUE(keep.restore());
    report(std::chrono::steady_clock::now() - start);
    expect_a_sound_machine();
}

} // namespace
} // namespace selftest
