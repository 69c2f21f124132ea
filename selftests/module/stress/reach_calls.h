/* SPDX-License-Identifier: GPL-2.0-only */
/* The calls of reach.cc: legal ones, and some that are not, drawn after what the model has. */
#ifndef SELFTESTS_REACH_CALLS_H
#define SELFTESTS_REACH_CALLS_H

#include "reach_model.h"
#include "support/arena.h"
#include "support/fixture.h"

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

namespace selftest::reach {

/* For people to read. */
std::string text(const Call& call);

class Caller {
public:
    /* @memory is the program's, to be pinned. */
    Caller(const Model& model, std::span<const Raw, nr_sessions> sessions, const Memory& memory,
           unsigned seed);

    Dice& dice() { return dice_; }

    /* Draw a call and make it. */
    Call call();
    dmaprobe_set_segments segments();

private:
    struct Range {
        uint64_t offset = 0;
        uint64_t length = 0;
    };

    unsigned below(uint64_t n) { return dice_(static_cast<unsigned>(n)); }
    bool chance(unsigned one_in) { return dice_(one_in) == 0; }
    uint64_t pick(std::initializer_list<uint64_t> from) { return from.begin()[below(from.size())]; }

    uint32_t one_of(const std::vector<uint32_t>& ids);
    uint32_t id(unsigned session, Types types);
    uint32_t end_id(unsigned session, Types types);

    uint64_t odd();
    uint64_t length_of(uint64_t most);
    uint64_t offset_in(const Object& memory);
    uint64_t longest_entry(uint64_t at) const;
    Range range_of(const Object* memory, bool entry = false);
    Range range_in(const Object& memory, bool entry);
    uint32_t dir_of(const Object* memory);
    uint64_t attrs();
    uint32_t bar();
    uint64_t size_of_bar(uint32_t bar) const;
    uint64_t link_length(uint64_t at, uint64_t most);

    /* A call of each kind; specialised for each. */
    template <class T>
    void fill(Call& call, T& op);
    template <class T>
    void draw(Call& call);
    struct Choice;
    void draw_one(Call& call, std::span<const Choice> choices);
    void draw_any(Call& call);
    dmaprobe_sg_entry draw_entry(unsigned session);
    void invite_padding(unsigned session, dmaprobe_sg_entry& before, dmaprobe_sg_entry& entry);

    const Model& model_;
    std::span<const Raw, nr_sessions> sessions_;
    const Memory& memory_;
    uint64_t attrs_; /* that the kernel has */
    Dice dice_;
    Memory unwritable_;
    bool missed_ = false; /* there is none of what was drawn */
};

} // namespace selftest::reach

#endif
