// SPDX-License-Identifier: MIT
// A vectored run: many calls in one.
#include <dmaprobe/run.h>

#include <cerrno>

#include <linux/dmaprobe.h>

#include "calls.h"

namespace dmaprobe {

static_assert(Run::max_calls == DMAPROBE_RUN_MAX);

Run::Run(const Session& session) : CallList(session, References::yes, max_calls) {}

Result<void> Run::execute(OnError on_error) {
    done_ = 0;
    if (auto good = ready(); !good) {
        cancel();
        return good;
    }
    auto& ops = state_->ops;
    if (ops.empty())
        return {};
    dmaprobe_run arg{};
    arg.flags = on_error == OnError::carry_on ? DMAPROBE_RUN_CONTINUE : 0;
    arg.nr_ops = static_cast<std::uint32_t>(ops.size());
    arg.ops = reinterpret_cast<std::uintptr_t>(ops.data());
    if (auto good = state_->channel->call(DMAPROBE_RUN, "run", arg); !good) {
        cancel();
        return good;
    }
    done_ = arg.done;
    // A run that stops at the first failure has none before its last call.
    if (on_error == OnError::stop && done_ == ops.size() && ops.back().result == 0)
        return {};
    return outcome(done_);
}

} // namespace dmaprobe
