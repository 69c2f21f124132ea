/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A fixture for tests that take the device from its driver: whatever becomes of it,
 * the next test finds it bound again.
 */
#ifndef SELFTESTS_UNBIND_H
#define SELFTESTS_UNBIND_H

#include "fixture.h"
#include "system.h"

#include <cstring>
#include <optional>

namespace selftest {

/* On top of a fixture that is a DeviceTest. */
template <class Base>
class Unbinding : public Base {
protected:
    void SetUp() override {
        Base::SetUp();
        if (this->IsSkipped() || this->HasFatalFailure())
            return;
        keep_.emplace(this->bdf);
        ASSERT_EQ(driver_of(this->bdf), driver_name);
    }

    void TearDown() override {
        // With the session closed the device is put back as at the start.
        EXPECT_OK(this->s.close());
        if (keep_) {
            EXPECT_TRUE(keep_->restore()) << "the device was not bound again";
        }
        Base::TearDown();
    }

    /* After an unbind: the driver again, and a session. */
    void come_back() {
        ASSERT_OK(probe_driver(this->bdf));
        ASSERT_EQ(driver_of(this->bdf), driver_name);
        this->s = Raw::open(this->bdf);
        ASSERT_TRUE(this->s) << strerror(this->s.error());
    }

private:
    std::optional<KeepDriver> keep_;
};

} // namespace selftest

#endif
