// SPDX-License-Identifier: GPL-2.0-only
// What the device can reach: what is mapped for the sessions, and not a byte more.
//
// A mask of 24 bits leaves the device 16 MiB of addresses, few enough to walk all of its page
// tables after each call. reach_calls.cc draws calls, legal and illegal ones, to two sessions.
// From those that succeed reach_model.cc derives what must be mapped where. It learns where
// memory lies from the CPU's page tables (/proc/self/pagemap) wherever it can, not from the
// module. The device's page tables must agree, to the byte.
//
// A failure shows the calls that led to it. DMAPROBE_REACH_SEED repeats what is drawn,
// DMAPROBE_REACH_CALLS says how many calls to make.

#include "reach_calls.h"
#include "reach_model.h"
#include "support/arena.h"
#include "support/fixture.h"
#include "support/ktap.h"
#include "support/system.h"

#include <array>
#include <chrono>
#include <cstring>
#include <deque>
#include <format>
#include <map>
#include <memory>
#include <random>
#include <sys/mman.h>
#include <utility>

namespace selftest::reach {
namespace {

constexpr size_t nr_remembered = 40;
// From so many calls on, each command must have succeeded.
constexpr uint64_t many_calls = 1500;

struct Count {
    uint64_t ok = 0;
    uint64_t failed = 0;
};

class Reach : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!iommu)
            GTEST_SKIP() << "no IOMMU translates for the device";
        if (const int err = s.set_mask(ones(mask_bits)))
            GTEST_SKIP() << "the device cannot have a mask of " << mask_bits
                         << " bits: " << strerror(err);

        seed = static_cast<unsigned>(env_number("DMAPROBE_REACH_SEED", std::random_device()()));
        calls = env_number("DMAPROBE_REACH_CALLS", 300);
        RecordProperty("DMAPROBE_REACH_SEED", std::to_string(seed));
        diagnose(std::format("DMAPROBE_REACH_SEED={} DMAPROBE_REACH_CALLS={}", seed, calls));
        memory = Memory::fenced(48 * page_size());
        ASSERT_TRUE(memory);
        renew(0, memory.size());
        pinned = pinned_pages();
        for (Raw& session : sessions) {
            session = Raw::open(bdf);
            ASSERT_TRUE(session) << strerror(session.error());
        }
        model = std::make_unique<Model>(bdf, sessions, granule);
        caller = std::make_unique<Caller>(*model, sessions, memory, seed);
    }

    unsigned roll(size_t sides) { return caller->dice()(static_cast<unsigned>(sides)); }
    bool fine() const { return model->trouble().empty(); }

    void remember(std::string what) {
        history.push_back(std::move(what));
        if (history.size() > nr_remembered)
            history.pop_front();
    }

    // By each session, and now and then by one that has nothing.
    void check() {
        if (++made % 64 == 0)
            restart_deadline();
        for (unsigned i = 0; i < nr_sessions && fine(); i++)
            if (sessions[i])
                model->compare(sessions[i], i);
        if (fine() && made % 16 == 0)
            model->compare(s, nr_sessions);
    }

    void follow(const Call& call) {
        std::visit(
            [&]<class T>(const T& /*op*/) {
                Count& count = counts[CommandOf<T>::name];

                (call.err ? count.failed : count.ok)++;
            },
            call.op);
        model->apply(call);
    }

    void must(unsigned session, const AnyOp& op) {
        Call call = {.session = session, .op = op};

        call.err = std::visit([&](auto& o) { return sessions[session](o); }, call.op);
        remember(text(call));
        if (call.err)
            model->wrong("refused: " + text(call));
        follow(call);
        check();
    }

    // --- a round: from sessions that have nothing to sessions that have nothing ---

    void begin_round() {
        dmaprobe_set_mask mask = {};
        dmaprobe_buffer_alloc buffer = {};

        mask.flags = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT;
        mask.mask = ones(mask_bits - (roll(3) ? 0 : roll(7)));
        must(0, mask);
        must(1, caller->segments());
        buffer.length = 32 * page_size();
        for (unsigned i = 0; i < nr_sessions && fine(); i++)
            must(i, buffer);
    }

    // Other pages in the place of some of the program's own.
    void renew(uint64_t offset, uint64_t length) const {
        madvise(memory.data() + offset, length, MADV_DONTNEED);
        for (uint64_t at = offset; at < offset + length; at += page_size())
            memory.data()[at] = std::byte{1};
    }

    void reopen(unsigned session) {
        remember(std::format("session {} is closed, and another one opened", session));
        if (sessions[session].close())
            model->wrong("close() fails");
        model->close_session(session);
        check();
        sessions[session] = Raw::open(bdf);
        if (!sessions[session])
            model->wrong("open() fails");
    }

    // Now and then, what is no call. Whether something was done.
    bool something_else() {
        const unsigned what = roll(150);

        if (what == 0) {
            reopen(roll(nr_sessions));
        } else if (what < 3) {
            remember("pages of the program are replaced");
            renew(roll(40) * page_size(), 8 * page_size());
        } else if (!model->exports().empty() && (what < 7 || model->exports().size() > 12)) {
            const size_t index = roll(model->exports().size());

            remember(std::format("fd {} is closed", model->exports()[index]->fd.get()));
            model->close_export(index);
            check();
        } else {
            return false;
        }
        return true;
    }

    void one_call() {
        const Call call = caller->call();

        remember(text(call));
        follow(call);
        check();
    }

    // End one object that nothing uses, by the call for it. Whether there was one.
    bool end_one() {
        for (unsigned session = 0; session < nr_sessions; session++)
            for (const auto& [id, object] : model->objects(session))
                if (!object.users) {
                    must(session, end_of(id, object));
                    return true;
                }
        return false;
    }

    static AnyOp end_of(uint32_t id, const Object& object) {
        dmaprobe_unmap unmap = {};
        dmaprobe_destroy destroy = {};

        switch (object.type) {
        case Type::buffer:
        case Type::alloc:
        case Type::pool:
        case Type::block:
            destroy.id = id;
            return destroy;
        case Type::space:
            return end_of_space(id, object);
        default:
            unmap.id = id;
            unmap.attrs = object.attrs;
            return unmap;
        }
    }

    // Or of one of its links.
    static AnyOp end_of_space(uint32_t id, const Object& space) {
        dmaprobe_iova_unlink unlink = {};
        dmaprobe_iova_destroy destroy = {};
        dmaprobe_iova_free free = {};

        unlink.id = destroy.id = free.id = id;
        if (space.links.empty())
            return free;
        const auto& [offset, link] = *space.links.begin();
        unlink.offset = offset;
        unlink.length = destroy.mapped_len = link.length;
        unlink.dir = destroy.dir = link.dir;
        unlink.attrs = destroy.attrs = link.attrs;
        if (space.links.size() == 1 && !offset)
            return destroy;
        return unlink;
    }

    void end_round() {
        if (roll(2)) {
            for (unsigned i = 0; i < nr_sessions && fine(); i++)
                reopen(i);
        }
        while (fine() && !model->exports().empty())
            model->close_export(0);
        while (fine() && end_one()) {
        }
        if (fine() && model->maps_something())
            model->wrong("something is mapped for nobody");
    }

    std::string last_calls() const {
        std::string lines;

        for (const std::string& line : history)
            lines += line + "\n";
        return lines;
    }

    void report(std::chrono::duration<double> took) const {
        std::string line;

        for (const auto& [name, count] : counts)
            line += std::format(" {} {}/{}", name, count.ok, count.failed);
        diagnose("succeeded/failed:" + line);
        diagnose(std::format("{} calls in {:.1f} s; {} lists were padded", made, took.count(),
                             model->pads()));
    }

    void expect_a_sound_end() {
        const bool has_iova = !s.missing(DMAPROBE_FEATURE_DMA_IOVA);

        for (Raw& session : sessions)
            EXPECT_OK(session.close());
        EXPECT_TRUE(wait_for([&] { return pinned_pages() == pinned; }, std::chrono::seconds(5)))
            << "pages stay pinned";
        EXPECT_OK(s.close());
        EXPECT_EQ(dma_in_use(bdf), "");
        // What never succeeds is not tested.
        if (made < many_calls)
            return;
        for (const auto& [name, count] : counts)
            if (has_iova || !name.starts_with("iova_")) {
                EXPECT_GT(count.ok, 0u) << name;
            }
        EXPECT_GT(model->pads(), 0u);
    }

    std::array<Raw, nr_sessions> sessions;
    std::unique_ptr<Model> model;
    std::unique_ptr<Caller> caller;
    std::deque<std::string> history;
    Memory memory;
    std::map<std::string_view, Count> counts;
    unsigned seed = 0;
    uint64_t calls = 0;
    uint64_t made = 0;
    int64_t pinned = 0;
};

TEST_F(Reach, AfterEveryCall) {
    const auto began = std::chrono::steady_clock::now();

    while (made < calls && fine()) {
        const uint64_t end = made + 60 + roll(80);

        begin_round();
        while (made < end && fine())
            if (!something_else() && fine())
                one_call();
        if (fine())
            end_round();
    }
    report(std::chrono::steady_clock::now() - began);
    ASSERT_TRUE(fine()) << model->trouble() << "\nDMAPROBE_REACH_SEED=" << seed << ", call " << made
                        << "; the last calls:\n"
                        << last_calls();
    expect_a_sound_end();
}

} // namespace
} // namespace selftest::reach
