// SPDX-License-Identifier: GPL-2.0-only
/*
 * The front for io_uring's commands. A command is complete when its handler returns, so
 * nothing is ever pending here.
 */
#include <linux/io_uring/cmd.h>

#include "private.h"

/* What a later kernel may give a meaning to must be zero today. */
static bool sqe_is_plain(const struct io_uring_cmd *ioucmd, unsigned int issue_flags)
{
	const struct io_uring_sqe *sqe = ioucmd->sqe;

	if (ioucmd->flags & IORING_URING_CMD_MASK)
		return false;
	if (READ_ONCE(sqe->ioprio) || READ_ONCE(sqe->__pad1) || READ_ONCE(sqe->len) ||
	    READ_ONCE(sqe->buf_index) || READ_ONCE(sqe->file_index) ||
	    READ_ONCE(sqe->addr3) || READ_ONCE(sqe->__pad2[0]))
		return false;
	/* The second half of a large SQE is the command's. */
	return !(issue_flags & IO_URING_F_SQE128) || !memchr_inv(sqe + 1, 0, sizeof(*sqe));
}

int dmaprobe_uring_cmd(struct io_uring_cmd *ioucmd, unsigned int issue_flags)
{
	struct dmaprobe_ucmd ucmd = {
		.session = ioucmd->file->private_data,
		.nonblock = issue_flags & IO_URING_F_NONBLOCK,
	};

	if (!sqe_is_plain(ioucmd, issue_flags))
		return -EINVAL;
	ucmd.ubuffer = u64_to_user_ptr(READ_ONCE(ioucmd->sqe->addr));
	return dmaprobe_dispatch(&ucmd, ioucmd->cmd_op);
}
