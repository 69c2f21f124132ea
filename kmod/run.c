// SPDX-License-Identifier: GPL-2.0-only
/*
 * The front that makes many calls in one.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "private.h"

#define CHUNK	16	/* calls that are read at a time */
#define FEW	32	/* calls whose ids fit on the stack */

/*
 * No call is made yet. This also finds out whether the results can be told,
 * before there is one that could not.
 */
static int cancel_all(struct dmaprobe_run_op __user *ops, u32 nr)
{
	u32 i;

	if (!user_access_begin(ops, nr * sizeof(*ops)))
		return -EFAULT;
	for (i = 0; i < nr; i++)
		unsafe_put_user(-ECANCELED, &ops[i].result, fault);
	user_access_end();
	return 0;

fault:
	user_access_end();
	return -EFAULT;
}

/* A worker of a ring is told by a notification, not by a signal. */
static bool cancelled(void)
{
	return fatal_signal_pending(current) ||
	       (unlikely(current->flags & PF_IO_WORKER) &&
		signal_pending(current));
}

static int run(struct dmaprobe_ucmd *ucmd, u32 *ids)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	struct dmaprobe_run_op __user *ops = u64_to_user_ptr(cmd->ops);
	struct dmaprobe_run_op chunk[CHUNK] __uninitialized;
	struct dmaprobe_run_ids made = { .ids = ids };
	int ret = 0;

	while (made.nr < cmd->nr_ops) {
		u32 i = made.nr % CHUNK;
		struct dmaprobe_ucmd call = {
			.session = ucmd->session,
			.run = &made,
		};

		if (!i && copy_from_user(chunk, ops + made.nr,
					 min(cmd->nr_ops - made.nr, CHUNK) *
					 sizeof(*chunk)))
			return -EFAULT;
		call.ubuffer = u64_to_user_ptr(chunk[i].arg);
		ret = dmaprobe_dispatch(&call, chunk[i].cmd);
		if (put_user(ret, &ops[made.nr].result))
			return -EFAULT;
		ids[made.nr++] = call.made;
		if (ret && !(cmd->flags & DMAPROBE_RUN_CONTINUE))
			break;
		cond_resched();
		if (cancelled())
			break;
	}
	cmd->done = made.nr;
	return dmaprobe_respond(ucmd);
}

int dmaprobe_op_run(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	u32 few[FEW] __uninitialized, *ids = few;
	int ret;

	if (ucmd->run || !cmd->nr_ops || cmd->nr_ops > DMAPROBE_RUN_MAX)
		return -EINVAL;

	/* Whatever cannot be told shall be known before something is done. */
	cmd->done = 0;
	ret = dmaprobe_respond(ucmd) ?:
	      cancel_all(u64_to_user_ptr(cmd->ops), cmd->nr_ops);
	if (ret)
		return ret;

	if (cmd->nr_ops > FEW) {
		ids = kvmalloc_array(cmd->nr_ops, sizeof(*ids),
				     GFP_KERNEL_ACCOUNT);
		if (!ids)
			return -ENOMEM;
	}
	ret = run(ucmd, ids);
	if (ids != few)
		kvfree(ids);
	return ret;
}
