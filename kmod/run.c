// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMAPROBE_RUN: many calls in one.
 */
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "private.h"

#define RUN_FEW		32	/* calls whose ids fit on the stack */

/*
 * No call is made yet. This also finds out whether the results can be written, before
 * there is one that could not.
 */
static int cancel_all(struct dmaprobe_run_op __user *ops, u32 nr)
{
	u32 i;

	for (i = 0; i < nr; i++)
		if (put_user(-ECANCELED, &ops[i].result))
			return -EFAULT;
	return 0;
}

static int run(struct dmaprobe_ucmd *ucmd, struct dmaprobe_run_op __user *ops, u32 *ids)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	struct dmaprobe_run_state state = { .ids = ids };
	int ret = 0;

	cmd->done = 0;
	while (cmd->done < cmd->nr_ops && !dmaprobe_cancelled()) {
		struct dmaprobe_ucmd call = {
			.session = ucmd->session,
			.run = &state,
		};
		struct dmaprobe_run_op op __uninitialized;

		if (ret && !(cmd->flags & DMAPROBE_RUN_CONTINUE))
			break;
		if (copy_from_user(&op, ops, sizeof(op)))
			return -EFAULT;
		call.ubuffer = u64_to_user_ptr(op.arg);
		ret = dmaprobe_dispatch(&call, op.cmd);
		ids[state.nr++] = ret ? 0 : call.made;
		if (put_user(ret, &ops->result))
			return -EFAULT;
		cmd->done++;
		ops++;
		cond_resched();
	}
	return 0;
}

int dmaprobe_op_run(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	struct dmaprobe_run_op __user *ops = u64_to_user_ptr(cmd->ops);
	u32 few[RUN_FEW] __uninitialized, *ids = few;
	int ret;

	if (ucmd->run || !cmd->nr_ops || cmd->nr_ops > DMAPROBE_RUN_MAX)
		return -EINVAL;
	/* Fail before doing anything if the results cannot be written. */
	ret = cancel_all(ops, cmd->nr_ops);
	if (ret || put_user(0, &((struct dmaprobe_run __user *)ucmd->ubuffer)->done))
		return -EFAULT;

	if (cmd->nr_ops > RUN_FEW) {
		ids = kvmalloc_array(cmd->nr_ops, sizeof(*ids), GFP_KERNEL_ACCOUNT);
		if (!ids)
			return -ENOMEM;
	}
	ret = run(ucmd, ops, ids);
	if (ids != few)
		kvfree(ids);
	return ret;
}
