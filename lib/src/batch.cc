// SPDX-License-Identifier: MIT
// A batch: many calls under way at a time.
#include <dmaprobe/batch.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <span>
#include <utility>

#include "calls.h"

namespace dmaprobe {

namespace {

constexpr unsigned max_depth = 4096;

} // namespace

Batch::Batch(const Session& session, const BatchOptions& options, std::unique_ptr<Ring> ring)
    : CallList(session, References::no, std::numeric_limits<std::uint32_t>::max()),
      ring_(std::move(ring)), depth_(options.depth), order_(options.order) {}

Batch::Batch(Batch&&) noexcept = default;
Batch& Batch::operator=(Batch&&) noexcept = default;
Batch::~Batch() = default;

Result<Batch> Batch::create(const Session& session, const BatchOptions& options) {
    if (options.depth < 1 || options.depth > max_depth)
        return std::unexpected(Error{EINVAL, "batch", "the depth is a number from 1 to 4096"});
    if (session.fd() < 0)
        return std::unexpected(Error{EBADF, "batch", "the session is closed"});
    auto ring = Ring::single(session.fd(), options.depth);
    if (!ring)
        return std::unexpected(std::move(ring.error()));
    return Batch(session, options, std::move(*ring));
}

Result<void> Batch::execute() {
    if (auto good = ready(); !good) {
        cancel();
        return good;
    }
    const std::span<CallOp> ops = state_->ops;
    const bool linked = order_ == Order::linked;
    const bool unchanged =
        ops.size() <= depth_ && known_ == ops.size() && generation_ == state_->generation;
    std::size_t made = 0;
    while (made < ops.size()) {
        const auto part = ops.subspan(made, std::min<std::size_t>(depth_, ops.size() - made));
        auto good = ring_->run(part, linked, unchanged);
        made += part.size();
        if (!good || (linked && part.back().result != 0)) {
            for (CallOp& op : ops.subspan(made))
                op.result = -ECANCELED;
            if (!good)
                return good;
            break;
        }
    }
    known_ = ops.size();
    generation_ = state_->generation;
    return outcome(ops.size());
}

} // namespace dmaprobe
