// SPDX-License-Identifier: MIT
// Make scattered pages contiguous for a device, and ask the IOMMU whether they are.
#include <iostream>

#include <dmaprobe/buffer.h>
#include <dmaprobe/iova.h>
#include <dmaprobe/session.h>
#include <dmaprobe/translate.h>

using namespace dmaprobe;
using namespace dmaprobe::literals;

static Result<void> run(const char* bdf) {
    auto session = Session::open(bdf);
    if (!session)
        return std::unexpected(session.error());
    auto pages = Buffer::scattered(*session, 16_KiB);
    if (!pages)
        return std::unexpected(pages.error());
    auto space = IovaSpace::alloc(*session, pages->length());
    if (!space)
        return std::unexpected(space.error());

    for (Size at; at < pages->length(); at += 4_KiB)
        if (auto done = space->link(*pages, at, at, 4_KiB, Direction::bidirectional); !done)
            return done;
    if (auto done = space->sync(0_B, space->length()); !done)
        return done;

    auto extents = translate(*session, space->addr(), space->length());
    if (!extents)
        return std::unexpected(extents.error());
    for (const Extent& extent : *extents)
        std::cout << extent << '\n';
    return space->destroy(space->length(), Direction::bidirectional);
}

int main(int argc, char** argv) {
    if (argc != 2)
        return 2;
    if (auto done = run(argv[1]); !done) {
        std::cerr << done.error() << '\n';
        return 1;
    }
}
